"""LoRA files of image models: diffusers, kohya's sd-scripts, numbered modules.

`file_kinds` is the table of them. A file of each kind is read by its own module here,
names of modules stay as the file has them, and `naming` brings kohya's and diffusers'
names together where the table of an architecture makes that certain.
"""

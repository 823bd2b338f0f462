"""What files of unknown origin say: bounded before it is read, safe to show."""

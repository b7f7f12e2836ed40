"""What runs inside each training worker."""

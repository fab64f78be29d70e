"""An array on its legs: making it, reading it, choosing the freshest legs, metadata and bitmaps."""

"""What the world is and how it moves; knows no policy, no reward, no window."""

"""Running plans: serial or on Ray, resumable, with truthful ends."""

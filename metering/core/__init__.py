"""Pure calculations: frames in, frames out. No clock, environment, I/O, randomness or SQL."""

//! Write a Xylem plugin: one trait, one macro, two targets.

//! Rules of the tree that are tests.

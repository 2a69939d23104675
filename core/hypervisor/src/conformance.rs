//! What every back end must do, as a list of facts to run against it.

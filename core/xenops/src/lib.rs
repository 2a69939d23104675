//! Domain life cycle as plans of atoms with undo.

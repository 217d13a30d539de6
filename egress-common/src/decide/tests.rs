//! One named test per numbered line; written against the order, not the code.

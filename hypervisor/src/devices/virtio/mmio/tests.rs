//! The transport against drivers that follow section 4.2 and drivers that do not.

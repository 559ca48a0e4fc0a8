//! The one error type of this crate. Shapes that do not fit are bugs of the caller and panic; only names come from users.

/// What can go wrong when a user names a kernel path or a storage type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name that is not one of the known ones.
    #[error("unknown {what} '{given}': use one of {known}")]
    UnknownName {
        /// What the name should name.
        what: &'static str,
        /// What was given.
        given: String,
        /// The names that exist.
        known: &'static str,
    },
}

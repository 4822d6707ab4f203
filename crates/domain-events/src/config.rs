//! Configuration that cannot work, said before anything runs.

/// The longest name of an event type, aggregate type or subscription, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// A setting that cannot work: which, its value, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} was not accepted: {value}, allowed is {allowed}")]
pub struct ConfigError {
    /// The setting.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What would be accepted.
    pub allowed: String,
}

impl ConfigError {
    /// The error that `field` is `value` where only `allowed` works.
    pub fn new(
        field: impl Into<String>,
        value: impl std::fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}

/// Checks that `name` is neither empty nor over [`MAX_NAME_BYTES`].
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), ConfigError> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    let value = format!(
        "{:?} ({} bytes)",
        name.chars().take(40).collect::<String>(),
        name.len()
    );
    Err(ConfigError::new(
        field,
        value,
        format!("1 to {MAX_NAME_BYTES} bytes"),
    ))
}

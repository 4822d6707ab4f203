//! Why a system did not come alive.

use domain_events::{ConfigError, StartError, SubscribeError};
use event_store_diesel::OpenError;

/// A system that was not built or not started. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SystemError {
    /// A setting cannot work.
    #[error("the system was not built")]
    Config(#[from] ConfigError),
    /// The store was not opened.
    #[error("the system was not started")]
    Open(#[from] OpenError),
    /// A subscription was not made.
    #[error("the system was not built")]
    Subscribe(#[from] SubscribeError),
    /// The bus was not started.
    #[error("the system was not started")]
    Start(#[from] StartError),
}

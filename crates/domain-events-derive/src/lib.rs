//! domain-events-derive

#![doc = include_str!("../README.md")]

mod attribute;
mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `DomainEvent` for a struct that carries the id of its aggregate in a field.
///
/// The keys of `#[domain_event(…)]`:
///
/// | key | | value |
/// |---|---|---|
/// | `name` | required | the stable name of the event type, 1 to 255 bytes |
/// | `aggregate` | required | the stable name of the aggregate type, 1 to 255 bytes |
/// | `id` | required | the field with the aggregate's id; its number in a tuple struct |
/// | `version` | 1 | the version of the payload's schema, from 1 |
/// | `urgency` | `Normal` | `Low`, `Normal` or `High` |
///
/// The id's text is borrowed where the field is `AsRef<str>` (`String`, `Arc<str>`, …), else it is
/// what the field displays (`Uuid`, integers, …).
#[proc_macro_derive(DomainEvent, attributes(domain_event))]
pub fn domain_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::implementation(&input)
        .unwrap_or_else(|error| error.into_compile_error())
        .into()
}

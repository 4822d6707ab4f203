//! The implementation that the derive writes.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{Data, DeriveInput, Error, Fields, Member, Result, spanned::Spanned};

use crate::attribute::EventAttribute;

/// `impl DomainEvent for …`, or why there can be none.
pub(crate) fn implementation(input: &DeriveInput) -> Result<TokenStream> {
    let fields = fields(input)?;
    let attribute = EventAttribute::read(&input.attrs, &input.ident)?;
    check_field(fields, &attribute.id, input)?;

    let EventAttribute {
        name, aggregate, ..
    } = &attribute;
    let language = language();
    let version = attribute.version.as_ref().map(|version| {
        quote! { const SCHEMA_VERSION: u32 = #version; }
    });
    let urgency = attribute.urgency.as_ref().map(|urgency| {
        quote! { const URGENCY: #language::Urgency = #language::Urgency::#urgency; }
    });
    let upcast = attribute.upcast.as_ref().map(|upcast| {
        quote! {
            fn upcast(
                from: u32,
                payload: #language::Value,
            ) -> ::std::result::Result<#language::Value, #language::UpcastError> {
                #upcast(from, payload)
            }
        }
    });
    let aggregate_id = aggregate_id(&attribute.id);
    let event = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #generics #language::DomainEvent for #event #arguments #bounds {
            const EVENT_TYPE: &'static str = #name;
            const AGGREGATE_TYPE: &'static str = #aggregate;
            #version
            #urgency
            #aggregate_id
            #upcast
        }
    })
}

/// The path to `domain-events`: as the deriving crate depends on it, or through `event-system`.
fn language() -> TokenStream {
    match (crate_name("domain-events"), crate_name("event-system")) {
        (Ok(FoundCrate::Name(name)), _) => {
            let name = format_ident!("{name}");
            quote! { ::#name }
        }
        (Err(_), Ok(FoundCrate::Name(name))) => {
            let name = format_ident!("{name}");
            quote! { ::#name::domain_events }
        }
        _ => quote! { ::domain_events },
    }
}

/// Borrows where the field is `AsRef<str>`, else displays: an inherent method whose bounds hold
/// comes before a method of a trait.
fn aggregate_id(field: &Member) -> TokenStream {
    // The call carries the field's span, so that a field that is neither is what an error shows.
    let call = quote_spanned! { field.span() => Id(&self.#field).text() };
    quote! {
        fn aggregate_id(&self) -> ::std::borrow::Cow<'_, str> {
            struct Id<'a, T: ?Sized>(&'a T);
            trait Displayed<'a> {
                fn text(self) -> ::std::borrow::Cow<'a, str>;
            }
            #[allow(dead_code, reason = "which of the two is called depends on the field")]
            impl<'a, T: ::std::convert::AsRef<str> + ?Sized> Id<'a, T> {
                fn text(self) -> ::std::borrow::Cow<'a, str> {
                    ::std::borrow::Cow::Borrowed(self.0.as_ref())
                }
            }
            impl<'a, T: ::std::fmt::Display + ?Sized> Displayed<'a> for Id<'a, T> {
                fn text(self) -> ::std::borrow::Cow<'a, str> {
                    ::std::borrow::Cow::Owned(::std::string::ToString::to_string(self.0))
                }
            }
            #call
        }
    }
}

fn fields(input: &DeriveInput) -> Result<&Fields> {
    if let Some(lifetime) = input.generics.lifetimes().next() {
        let message = "an event owns what it says: it cannot have a lifetime";
        return Err(Error::new(lifetime.span(), message));
    }
    match &input.data {
        Data::Struct(data) => Ok(&data.fields),
        Data::Enum(_) | Data::Union(_) => Err(Error::new(
            input.ident.span(),
            "an event is a struct: each kind of event has a name of its own in the log",
        )),
    }
}

fn check_field(fields: &Fields, id: &Member, input: &DeriveInput) -> Result<()> {
    if fields.members().any(|member| member == *id) {
        return Ok(());
    }
    let field = match id {
        Member::Named(name) => name.to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    };
    let message = format!("`{}` has no field `{field}`", input.ident);
    Err(Error::new(id.span(), message))
}

#[cfg(test)]
mod tests {
    use proc_macro2::TokenStream;
    use quote::quote;

    use super::implementation;

    fn refusal(input: TokenStream) -> String {
        let input = syn::parse2(input).unwrap();
        implementation(&input).unwrap_err().to_string()
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers pass what they quote"
    )]
    fn refusal_of_keys(keys: TokenStream) -> String {
        refusal(quote! { #[domain_event(#keys)] struct Placed { order: String } })
    }

    #[test]
    fn keys_that_are_required_are_named() {
        let missing = refusal(quote! { struct Placed { order: String } });
        assert!(missing.starts_with("missing key `name`"), "{missing}");
        let missing = refusal_of_keys(quote! { name = "a", id = order });
        assert!(missing.starts_with("missing key `aggregate`"), "{missing}");
        let missing = refusal_of_keys(quote! { name = "a", aggregate = "b" });
        assert!(missing.starts_with("missing key `id`"), "{missing}");
    }

    #[test]
    fn keys_that_are_unknown_or_given_twice_are_refused() {
        let unknown = refusal_of_keys(quote! { nmae = "a" });
        assert!(unknown.starts_with("unknown key"), "{unknown}");
        let twice = refusal_of_keys(quote! { name = "a", name = "a" });
        assert_eq!(twice, "the key is given twice");
    }

    #[test]
    fn a_name_has_1_to_255_bytes() {
        let longest = "é".repeat(127) + "x";
        let too_long = format!("{longest}x");
        assert_eq!(refusal_of_keys(quote! { name = "" }), "the name is empty");
        assert_eq!(
            refusal_of_keys(quote! { aggregate = #too_long }),
            "the name has 256 bytes, at most 255 are allowed"
        );
        let missing = refusal_of_keys(quote! { name = #longest });
        assert!(missing.starts_with("missing key `aggregate`"), "{missing}");
    }

    #[test]
    fn a_version_is_a_number_from_1() {
        assert_eq!(
            refusal_of_keys(quote! { version = 0 }),
            "versions count from 1"
        );
        let too_large = refusal_of_keys(quote! { version = 4294967296 });
        assert!(too_large.contains("too large"), "{too_large}");
    }

    #[test]
    fn an_urgency_is_one_of_three() {
        let unknown = refusal_of_keys(quote! { urgency = Extreme });
        assert!(unknown.starts_with("unknown urgency"), "{unknown}");
    }

    #[test]
    fn the_id_is_a_field_of_the_event() {
        let keys = quote! { name = "a", aggregate = "b", id = basket };
        assert_eq!(refusal_of_keys(keys), "`Placed` has no field `basket`");
        let tuple = quote! {
            #[domain_event(name = "a", aggregate = "b", id = 1)] struct Placed(String);
        };
        assert_eq!(refusal(tuple), "`Placed` has no field `1`");
    }

    #[test]
    fn an_event_is_a_struct_that_owns_its_data() {
        let an_enum = refusal(quote! { enum Placed { Here } });
        assert!(an_enum.starts_with("an event is a struct"), "{an_enum}");
        let borrowing = refusal(quote! { struct Placed<'a> { order: &'a str } });
        assert!(borrowing.starts_with("an event owns"), "{borrowing}");
    }
}

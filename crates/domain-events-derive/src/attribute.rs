//! What `#[domain_event(…)]` says.

use proc_macro2::Span;
use syn::{
    Attribute, Error, Ident, LitInt, LitStr, Member, Path, Result, meta::ParseNestedMeta,
    spanned::Spanned,
};

// As `domain_events::MAX_NAME_BYTES`, which this crate cannot depend on.
const MAX_NAME_BYTES: usize = 255;

const KEYS: &str = "`name`, `aggregate`, `id`, `version`, `urgency` and `upcast`";

/// The keys of the attribute, all checked but for the existence of the field.
pub(crate) struct EventAttribute {
    pub(crate) name: LitStr,
    pub(crate) aggregate: LitStr,
    pub(crate) id: Member,
    pub(crate) version: Option<LitInt>,
    pub(crate) urgency: Option<Ident>,
    /// The function that brings older JSON to the next version.
    pub(crate) upcast: Option<Path>,
}

#[derive(Default)]
struct Keys {
    name: Option<LitStr>,
    aggregate: Option<LitStr>,
    id: Option<Member>,
    version: Option<LitInt>,
    urgency: Option<Ident>,
    upcast: Option<Path>,
}

impl EventAttribute {
    /// Reads the attribute of a type; `event` is the name of that type.
    pub(crate) fn read(attributes: &[Attribute], event: &Ident) -> Result<Self> {
        let mut keys = Keys::default();
        let mut place: Option<Span> = None;
        for attribute in attributes {
            if attribute.path().is_ident("domain_event") {
                place.get_or_insert(attribute.path().span());
                attribute.parse_nested_meta(|meta| keys.take(&meta))?;
            }
        }
        keys.complete(place.unwrap_or_else(|| event.span()))
    }
}

impl Keys {
    fn take(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let key = meta.path.get_ident().map(ToString::to_string);
        match key.as_deref() {
            Some("name") => set(&mut self.name, meta, name),
            Some("aggregate") => set(&mut self.aggregate, meta, name),
            Some("id") => set(&mut self.id, meta, |meta| meta.value()?.parse()),
            Some("version") => set(&mut self.version, meta, version),
            Some("urgency") => set(&mut self.urgency, meta, urgency),
            Some("upcast") => set(&mut self.upcast, meta, |meta| meta.value()?.parse()),
            _ => Err(meta.error(format!("unknown key, the keys are {KEYS}"))),
        }
    }

    fn complete(self, place: Span) -> Result<EventAttribute> {
        let missing = |key: &str, example: &str| {
            let message =
                format!("missing key `{key}`: write `#[domain_event({key} = {example}, …)]`");
            Error::new(place, message)
        };
        Ok(EventAttribute {
            name: self
                .name
                .ok_or_else(|| missing("name", "\"shop.order-placed\""))?,
            aggregate: self
                .aggregate
                .ok_or_else(|| missing("aggregate", "\"order\""))?,
            id: self.id.ok_or_else(|| missing("id", "order_id"))?,
            version: self.version,
            urgency: self.urgency,
            upcast: self.upcast,
        })
    }
}

fn set<T>(
    slot: &mut Option<T>,
    meta: &ParseNestedMeta<'_>,
    parse: impl FnOnce(&ParseNestedMeta<'_>) -> Result<T>,
) -> Result<()> {
    if slot.is_some() {
        return Err(meta.error("the key is given twice"));
    }
    *slot = Some(parse(meta)?);
    Ok(())
}

fn name(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let name: LitStr = meta.value()?.parse()?;
    match name.value().len() {
        0 => Err(Error::new(name.span(), "the name is empty")),
        1..=MAX_NAME_BYTES => Ok(name),
        bytes => Err(Error::new(
            name.span(),
            format!("the name has {bytes} bytes, at most {MAX_NAME_BYTES} are allowed"),
        )),
    }
}

fn version(meta: &ParseNestedMeta<'_>) -> Result<LitInt> {
    let version: LitInt = meta.value()?.parse()?;
    if version.base10_parse::<u32>()? == 0 {
        return Err(Error::new(version.span(), "versions count from 1"));
    }
    Ok(version)
}

fn urgency(meta: &ParseNestedMeta<'_>) -> Result<Ident> {
    let urgency: Ident = meta.value()?.parse()?;
    if ["Low", "Normal", "High"]
        .iter()
        .any(|known| urgency == known)
    {
        return Ok(urgency);
    }
    Err(Error::new(
        urgency.span(),
        "unknown urgency, it is `Low`, `Normal` or `High`",
    ))
}

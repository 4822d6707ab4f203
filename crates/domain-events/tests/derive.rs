//! `#[derive(DomainEvent)]`, by use; what it refuses is shown in the documentation of the macro.
#![cfg(feature = "derive")]

use std::{borrow::Cow, sync::Arc};

use domain_events::{DomainEvent, Urgency};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "shop.alarm", aggregate = "shop", id = 1, version = 3, urgency = High)]
struct Alarm(bool, u64);

#[test]
fn names_are_those_of_the_attribute() {
    assert_eq!(OrderPlaced::EVENT_TYPE, "shop.order-placed");
    assert_eq!(OrderPlaced::AGGREGATE_TYPE, "order");
}

#[test]
fn version_and_urgency_have_defaults() {
    assert_eq!(OrderPlaced::SCHEMA_VERSION, 1);
    assert_eq!(OrderPlaced::URGENCY, Urgency::Normal);
}

#[test]
fn version_and_urgency_can_be_given() {
    assert_eq!(Alarm::SCHEMA_VERSION, 3);
    assert_eq!(Alarm::URGENCY, Urgency::High);
}

#[test]
fn a_tuple_struct_names_its_field_by_number() {
    assert_eq!(Alarm(true, 7).aggregate_id(), "7");
}

#[test]
fn keys_may_be_spread_over_attributes() {
    #[derive(Serialize, Deserialize, DomainEvent)]
    #[domain_event(name = "shop.closed", aggregate = "shop")]
    #[domain_event(id = r#type)]
    struct Closed {
        r#type: String,
    }
    let closed = Closed {
        r#type: "kiosk".to_owned(),
    };
    assert_eq!(closed.aggregate_id(), "kiosk");
}

/// Derives an event whose id is of the type, and checks the id's text and whether it is borrowed.
macro_rules! id_of_type {
    ($type:ty, $id:expr, $text:expr, $borrowed:expr) => {{
        #[derive(Serialize, Deserialize, DomainEvent)]
        #[domain_event(name = "a", aggregate = "b", id = id)]
        struct Tested {
            id: $type,
        }
        let event = Tested { id: $id };
        let id = event.aggregate_id();
        assert_eq!(id, $text);
        assert_eq!(matches!(id, Cow::Borrowed(_)), $borrowed);
    }};
}

#[test]
fn an_id_that_is_text_is_borrowed() {
    id_of_type!(String, "x".to_owned(), "x", true);
    id_of_type!(Box<str>, "x".into(), "x", true);
    id_of_type!(Arc<str>, "x".into(), "x", true);
    id_of_type!(Cow<'static, str>, Cow::Borrowed("x"), "x", true);
}

#[test]
fn an_id_that_is_not_text_is_displayed() {
    id_of_type!(u64, 42, "42", false);
    id_of_type!(i32, -1, "-1", false);
    id_of_type!(char, 'x', "x", false);
    id_of_type!(
        Uuid,
        Uuid::nil(),
        "00000000-0000-0000-0000-000000000000",
        false
    );
}

#[test]
fn an_id_may_be_static_text() {
    #[derive(Serialize, Deserialize, DomainEvent)]
    #[domain_event(name = "a", aggregate = "b", id = id)]
    struct Tested {
        #[serde(skip)]
        id: &'static str,
    }
    assert!(matches!(
        Tested { id: "x" }.aggregate_id(),
        Cow::Borrowed("x")
    ));
}

#[test]
fn an_event_may_be_generic() {
    #[derive(Serialize, Deserialize, DomainEvent)]
    #[domain_event(name = "a", aggregate = "b", id = id)]
    #[serde(bound = "")]
    struct Changed<T, const N: usize>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        id: u8,
        to: T,
    }
    let changed = Changed::<_, 2> {
        id: 5,
        to: "red".to_owned(),
    };
    assert_eq!(changed.aggregate_id(), "5");
    assert_eq!(changed.to, "red");
}

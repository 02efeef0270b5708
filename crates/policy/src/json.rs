//! JSON as it was written: with every field, also those that are given twice.
//!
//! A derived reader knows neither where it is nor what a misspelt field was meant to be, and a map
//! of values forgets the first of two equal fields. A policy that is read wrongly is open, so this
//! one is read by hand. Depth and counts are bounded here already, whatever the format is.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Deepest nesting; a policy needs four.
const MAX_DEPTH: u8 = 8;
/// Most items of a list or an object.
const MAX_ITEMS: usize = 1024;

/// A JSON value.
#[derive(Debug)]
pub(crate) enum Json {
    Text(String),
    Number(u64),
    Bool(bool),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Nothing that a policy has: null, negative and fractional numbers.
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Nested(0).deserialize(deserializer)
    }
}

/// Reads a value so many levels down.
#[derive(Clone, Copy)]
struct Nested(u8);

impl Nested {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.0 < MAX_DEPTH {
            Ok(Self(self.0 + 1))
        } else {
            Err(E::custom("egress is nested too deeply"))
        }
    }
}

fn bounded<E: Error>(items: usize) -> Result<(), E> {
    if items < MAX_ITEMS { Ok(()) } else { Err(E::custom("egress has a list that is too long")) }
}

impl<'de> DeserializeSeed<'de> for Nested {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(u64::try_from(value).map_or(Json::Other, Json::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let (nested, mut list) = (self.deeper()?, Vec::new());
        while let Some(item) = items.next_element_seed(nested)? {
            bounded(list.len())?;
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Json, A::Error> {
        let (nested, mut object) = (self.deeper()?, Vec::new());
        while let Some(name) = fields.next_key()? {
            bounded(object.len())?;
            object.push((name, fields.next_value_seed(nested)?));
        }
        Ok(Json::Object(object))
    }
}

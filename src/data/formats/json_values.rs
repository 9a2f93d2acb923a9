//! What is made of a JSON object: the keys of all rows, or the values of one.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use super::shared::clip;
use super::value::{Cell, Value};

/// The columns, and their indices.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) names: Vec<String>,
    indices: HashMap<String, usize>,
}

impl Keys {
    pub(super) fn new(names: Vec<String>) -> Self {
        let indices = names.iter().cloned().zip(0..).collect();
        Self { names, indices }
    }

    /// Rows mostly have the same keys in the same order.
    fn find(&self, key: &str, guess: usize) -> Option<usize> {
        match self.names.get(guess) {
            Some(name) if name == key => Some(guess),
            _ => self.indices.get(key).copied(),
        }
    }
}

/// What is made of an object.
pub(super) trait ReadObject {
    /// Takes a key, the `index`-th of its object, and the value that follows.
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, index: usize, map: &mut A) -> Result<(), A::Error>;

    /// Forgets what was read of a broken object.
    fn forget(&mut self);

    /// Whether it failed only because a value has to be read as text. Asked once a failure.
    fn wants_another_try(&mut self) -> bool {
        false
    }
}

pub(super) struct CollectKeys<'a>(pub(super) &'a mut Keys);

impl ReadObject for CollectKeys<'_> {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, index: usize, map: &mut A) -> Result<(), A::Error> {
        if self.0.find(key, index).is_none() {
            self.0.indices.insert(key.to_owned(), self.0.names.len());
            self.0.names.push(key.to_owned());
        }
        map.next_value::<IgnoredAny>().map(drop)
    }

    fn forget(&mut self) {}
}

/// The values of a row, in memory that the rows before it have used.
pub(super) struct Values {
    pub(super) slots: Vec<Slot>,
    /// Counts the objects that were begun.
    object: u64,
}

pub(super) struct Slot {
    value: Value,
    /// The object that the value is of.
    object: u64,
    pub(super) is_wanted: bool,
    /// Whether its values are taken as text first, which is slower and keeps large numbers and objects as they are.
    is_raw: bool,
}

impl Values {
    pub(super) fn new(count: usize) -> Self {
        let slot = || Slot { value: Value::Missing, object: 0, is_wanted: true, is_raw: false };
        Self { slots: std::iter::repeat_with(slot).take(count).collect(), object: 0 }
    }

    pub(super) fn begin(&mut self) {
        self.object += 1;
    }

    pub(super) fn cell(&self, column: usize) -> Cell<'_> {
        let slot = &self.slots[column];
        if slot.object == self.object { slot.value.cell() } else { Cell::Missing }
    }
}

pub(super) struct ReadValues<'a> {
    pub(super) keys: &'a Keys,
    pub(super) values: &'a mut Values,
    /// Whether a column was just found to need its text.
    pub(super) has_found_raw: bool,
}

impl ReadObject for ReadValues<'_> {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, index: usize, map: &mut A) -> Result<(), A::Error> {
        let Some(column) = self.keys.find(key, index) else { return map.next_value::<IgnoredAny>().map(drop) };
        let object = self.values.object;
        let slot = &mut self.values.slots[column];
        if slot.object == object {
            return Err(A::Error::custom(format!("the key `{}` occurs twice", clip(key))));
        }
        slot.object = object;
        if !slot.is_wanted {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        if slot.is_raw {
            slot.value = Value::of_json(map.next_value::<&RawValue>()?.get())
                .map_err(|error| A::Error::custom(format!("`{}`: {error}", clip(key))))?;
            return Ok(());
        }
        let read = map.next_value_seed(PlainValue { value: &mut slot.value, is_raw: &mut slot.is_raw });
        self.has_found_raw |= slot.is_raw;
        read
    }

    fn forget(&mut self) {
        self.values.begin();
    }

    fn wants_another_try(&mut self) -> bool {
        std::mem::take(&mut self.has_found_raw)
    }
}

/// Reads all values but objects and large numbers; those set the flag and fail.
struct PlainValue<'a> {
    value: &'a mut Value,
    is_raw: &'a mut bool,
}

impl PlainValue<'_> {
    fn number(self, number: impl fmt::Display) {
        *self.value = Value::Integer(number.to_string());
    }
}

impl<'de> DeserializeSeed<'de> for PlainValue<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PlainValue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        *self.value = Value::Null;
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        *self.value = Value::Bool(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.number(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.number(value);
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        // Larger ones may be integers whose digits do not fit.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.abs() < EXACT {
            *self.value = Value::Float(serde_json::Value::from(value).to_string());
            return Ok(());
        }
        *self.is_raw = true;
        Err(E::custom("a large number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        match self.value {
            Value::Text(before) => {
                before.clear();
                before.push_str(text);
            }
            other => *other = Value::Text(text.to_owned()),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if !matches!(self.value, Value::List(_)) {
            *self.value = Value::List(Vec::new());
        }
        let Value::List(list) = self.value else { return Ok(()) };
        let mut count = 0;
        loop {
            if count == list.len() {
                list.push(Value::Missing);
            }
            let item = PlainValue { value: &mut list[count], is_raw: &mut *self.is_raw };
            if items.next_element_seed(item)?.is_none() {
                list.truncate(count);
                return Ok(());
            }
            count += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        *self.is_raw = true;
        Err(A::Error::custom("an object"))
    }
}

/// Reads an object, and gives the number of its keys.
pub(super) fn read_object<V: ReadObject>(text: &[u8], target: &mut V) -> serde_json::Result<usize> {
    let mut deserializer = Deserializer::from_slice(text);
    let count = serde::Deserializer::deserialize_map(&mut deserializer, Object(target))?;
    deserializer.end()?;
    Ok(count)
}

struct Object<'a, V>(&'a mut V);

impl<'de, V: ReadObject> Visitor<'de> for Object<'_, V> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object such as {\"text\": \"…\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut count = 0;
        let mut key = String::new();
        while map.next_key_seed(Key(&mut key))?.is_some() {
            self.0.entry(&key, count, &mut map)?;
            count += 1;
        }
        Ok(count)
    }
}

/// A key, in memory that is used again.
struct Key<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<(), E> {
        self.0.clear();
        self.0.push_str(key);
        Ok(())
    }
}

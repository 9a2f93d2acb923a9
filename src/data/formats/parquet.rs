//! Parquet, and the names that the data set library keeps for numbered classes in the file's metadata.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, Result, bail, ensure};
use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::{Type, TypePtr};
use serde_json::Value as Json;

use super::shared::{HEAD, refuse_duplicates};
use super::signature;
use super::value::{Cell, Value};
use crate::library_panic::caught;

/// The rows of a Parquet file.
pub(super) struct ParquetRows {
    path: String,
    schema: TypePtr,
    columns: Vec<String>,
    rows: RowIter<'static>,
    /// For each column, the names of its classes.
    classes: Vec<Option<Vec<String>>>,
    /// Of each column that is read, its place among all.
    places: Vec<usize>,
    values: Vec<Value>,
    number: u64,
}

impl ParquetRows {
    /// Reads the schema; also gives the names of the columns.
    pub(super) fn open(path: &str, mut file: File) -> Result<(Self, Vec<String>)> {
        let mut head = Vec::with_capacity(HEAD);
        let read = |file: &mut File, head: &mut Vec<u8>| file.take(HEAD as u64).read_to_end(head);
        read(&mut file, &mut head).and_then(|_| file.rewind()).with_context(|| format!("{path}: cannot read"))?;
        signature::refuse_other_formats(path, &head, "parquet")?;
        let reader = SerializedFileReader::new(file).with_context(|| format!("{path}: not a Parquet file"))?;
        let metadata = reader.metadata().file_metadata();
        let columns: Vec<String> = metadata.schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
        ensure!(!columns.is_empty(), "{path}: has no columns");
        refuse_duplicates(path, &columns)?;
        let described = metadata.key_value_metadata().and_then(|entries| {
            let entry = entries.iter().find(|entry| entry.key == "huggingface")?;
            serde_json::from_str::<Json>(entry.value.as_deref()?).ok()
        });
        let classes = columns
            .iter()
            .map(|column| class_names(described.as_ref()?.get("info")?.get("features")?.get(column)?))
            .collect();
        let schema = metadata.schema_descr().root_schema_ptr();
        let rows = RowIter::from_file_into(Box::new(reader));
        let source = Self {
            path: path.to_owned(),
            schema,
            rows,
            classes,
            places: (0..columns.len()).collect(),
            values: vec![Value::Missing; columns.len()],
            number: 0,
            columns: columns.clone(),
        };
        Ok((source, columns))
    }

    /// Reads these columns alone.
    pub(super) fn only(mut self, columns: &[usize]) -> Result<Self> {
        self.places.retain(|place| columns.contains(place));
        let fields = self.places.iter().map(|&place| self.schema.get_fields()[place].clone()).collect();
        let wanted = Type::group_type_builder(self.schema.name()).with_fields(fields).build();
        let rows = wanted.and_then(|wanted| self.rows.project(Some(wanted)));
        Ok(Self { rows: rows.with_context(|| format!("{}: cannot read", self.path))?, ..self })
    }

    pub(super) fn advance(&mut self) -> Result<bool> {
        // The library panics on some damaged pages.
        let Some(next) = caught(|| self.rows.next()) else {
            bail!("{}: cannot read row {}: the file is damaged", self.path, self.number + 1);
        };
        let Some(row) = next else { return Ok(false) };
        self.number += 1;
        let row = row.with_context(|| format!("{}: cannot read row {}", self.path, self.number))?;
        for (&column, (_, field)) in self.places.iter().zip(row.into_columns()) {
            let classes = self.classes[column].as_deref();
            let value = value_of(field, classes)
                .with_context(|| format!("{}:{}: column `{}`", self.path, self.number, self.columns[column]))?;
            self.values[column] = value;
        }
        Ok(true)
    }

    pub(super) fn cell(&self, column: usize) -> Cell<'_> {
        self.values[column].cell()
    }

    /// The row's number, from 1.
    pub(super) fn row_number(&self) -> u64 {
        self.number
    }
}

/// The names of a feature of the data set library: a `ClassLabel`, or a list of it.
fn class_names(feature: &Json) -> Option<Vec<String>> {
    match feature {
        Json::Array(items) => class_names(items.first()?),
        Json::Object(entries) if entries.get("_type").and_then(Json::as_str) == Some("ClassLabel") => {
            let names = entries.get("names")?.as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect()
        }
        Json::Object(entries) => class_names(entries.get("feature")?),
        _ => None,
    }
}

fn value_of(field: Field, classes: Option<&[String]>) -> Result<Value> {
    let integer = |number: i128| match classes {
        None => Ok(Value::Integer(number.to_string())),
        // The library's own sign for a class that is not known.
        Some(_) if number == -1 => Ok(Value::Null),
        Some(names) => match usize::try_from(number).ok().and_then(|index| names.get(index)) {
            Some(name) => Ok(Value::ClassName(name.clone())),
            None => bail!("holds the class {number}, and the file's metadata names {} classes", names.len()),
        },
    };
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => integer(value.into())?,
        Field::Short(value) => integer(value.into())?,
        Field::Int(value) => integer(value.into())?,
        Field::Long(value) => integer(value.into())?,
        Field::UByte(value) => integer(value.into())?,
        Field::UShort(value) => integer(value.into())?,
        Field::UInt(value) => integer(value.into())?,
        Field::ULong(value) => integer(value.into())?,
        // In the shortest digits of its own type; NaN is pandas' null.
        Field::Float16(value) => float(value.is_finite(), value.to_f32()),
        Field::Float(value) => float(value.is_finite(), value),
        Field::Double(value) => float(value.is_finite(), value),
        Field::Decimal(_) => Value::Float(field.to_string()),
        Field::Str(text) => Value::Text(text),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Other("bytes that are not UTF-8"),
        },
        Field::ListInternal(list) => {
            Value::List(list.elements().iter().map(|item| value_of(item.clone(), classes)).collect::<Result<_>>()?)
        }
        Field::Group(row) => {
            let fields = row.into_columns().into_iter().map(|(name, field)| Ok((name, value_of(field, None)?)));
            Value::Object(object(&fields.collect::<Result<Vec<_>>>()?))
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, value)| {
                let key = value_of(key.clone(), None)?;
                let name = key.cell().to_text().map_or_else(|_| key.to_json(), Cow::into_owned);
                Ok((name, value_of(value.clone(), None)?))
            });
            Value::Object(object(&entries.collect::<Result<Vec<_>>>()?))
        }
        Field::Date(days) => Span::new()
            .try_days(days)
            .and_then(|days| date(1970, 1, 1).checked_add(days))
            .map_or(Value::Other("a date"), |day| Value::Text(day.to_string())),
        Field::TimestampMillis(value) => moment(Timestamp::from_millisecond(value)),
        Field::TimestampMicros(value) => moment(Timestamp::from_microsecond(value)),
        Field::TimeMillis(_) | Field::TimeMicros(_) => Value::Other("a time of day"),
    })
}

/// A point in time as pandas prints it: 2026-01-02 03:04:05.
fn moment(moment: Result<Timestamp, jiff::Error>) -> Value {
    moment.map_or(Value::Other("a point in time"), |moment| {
        Value::Text(TimeZone::UTC.to_datetime(moment).to_string().replace('T', " "))
    })
}

/// JSON text of an object.
fn object(entries: &[(String, Value)]) -> String {
    let entries: Vec<String> =
        entries.iter().map(|(name, value)| format!("{}: {}", Json::from(name.as_str()), value.to_json())).collect();
    format!("{{{}}}", entries.join(", "))
}

fn float(is_finite: bool, value: impl std::fmt::Debug) -> Value {
    if is_finite { Value::Float(format!("{value:?}")) } else { Value::Null }
}

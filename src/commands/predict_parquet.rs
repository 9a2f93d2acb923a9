//! Predictions as a Parquet file: `id`, `predicted` (a list of labels) and a column of probabilities for each label.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{Type, TypePtr};

/// Rows of a row group.
const GROUP: usize = 1 << 16;

/// A Parquet file that is being written.
pub(super) struct ParquetTable<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    ids: Vec<ByteArray>,
    predicted: Vec<Vec<ByteArray>>,
    /// One column a label.
    probabilities: Vec<Vec<f32>>,
}

impl<W: Write + Send> ParquetTable<W> {
    /// A table whose columns have these names: id, predicted, and one a label.
    pub(super) fn new(writer: W, columns: &[String]) -> Result<Self> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = SerializedFileWriter::new(writer, schema(columns)?, Arc::new(properties))?;
        let labels = columns.len() - 2;
        Ok(Self { writer, ids: Vec::new(), predicted: Vec::new(), probabilities: vec![Vec::new(); labels] })
    }

    pub(super) fn push(&mut self, id: &str, predicted: &[&str], probabilities: &[f32]) -> Result<()> {
        self.ids.push(id.into());
        self.predicted.push(predicted.iter().map(|label| (*label).into()).collect());
        for (column, probability) in self.probabilities.iter_mut().zip(probabilities) {
            column.push(*probability);
        }
        if self.ids.len() == GROUP { self.write_group() } else { Ok(()) }
    }

    /// Writes what is left, and the file's end.
    pub(super) fn finish(mut self) -> Result<()> {
        if !self.ids.is_empty() {
            self.write_group()?;
        }
        self.writer.close()?;
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        let mut index = 0;
        while let Some(mut column) = group.next_column()? {
            match index {
                0 => column.typed::<ByteArrayType>().write_batch(&self.ids, None, None)?,
                1 => {
                    let (values, definitions, repetitions) = levels(&self.predicted);
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&definitions), Some(&repetitions))?
                }
                _ => column.typed::<FloatType>().write_batch(&self.probabilities[index - 2], None, None)?,
            };
            column.close()?;
            index += 1;
        }
        group.close()?;
        self.ids.clear();
        self.predicted.clear();
        self.probabilities.iter_mut().for_each(Vec::clear);
        Ok(())
    }
}

/// The items of lists end to end, whether each is there, and whether it goes on with the list before it.
fn levels(lists: &[Vec<ByteArray>]) -> (Vec<ByteArray>, Vec<i16>, Vec<i16>) {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        if list.is_empty() {
            definitions.push(0);
            repetitions.push(0);
        }
        for (index, item) in list.iter().enumerate() {
            values.push(item.clone());
            definitions.push(1);
            repetitions.push(i16::from(index > 0));
        }
    }
    (values, definitions, repetitions)
}

fn schema(columns: &[String]) -> Result<TypePtr> {
    let text = |name: &str| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_logical_type(Some(LogicalType::String))
            .with_repetition(Repetition::REQUIRED)
            .build()
            .map(Arc::new)
    };
    let items = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![text("element")?])
        .build()?;
    let predicted = Type::group_type_builder(&columns[1])
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(items)])
        .build()?;
    let mut fields = vec![text(&columns[0])?, Arc::new(predicted)];
    for label in &columns[2..] {
        let column = Type::primitive_type_builder(label, Physical::FLOAT).with_repetition(Repetition::REQUIRED);
        fields.push(Arc::new(column.build()?));
    }
    Ok(Arc::new(Type::group_type_builder("predictions").with_fields(fields).build()?))
}

//! Trained embeddings: row n of the output is the sum of a row of each table.

use std::rc::Rc;

use candle_core::{Result, bail};

use super::tape::{Param, Tape, Value};
use crate::kernels;

/// A trained table, and its row for each token.
#[derive(Clone)]
pub struct TableRows {
    /// `(V, D)`
    pub table: Rc<Param>,
    /// N indices.
    pub rows: Rc<[u32]>,
    /// A row that is not trained: torch's `padding_idx`.
    pub padding: Option<u32>,
}

/// Sums the rows of the tables, `(N, D)`.
///
/// # Errors
/// If there is no table, a row is outside its table, or the tables differ in width or count.
pub fn embedding(tape: &Tape, parts: Vec<TableRows>) -> Result<Value> {
    let Some(first) = parts.first() else { bail!("no table to take rows from") };
    let (count, width) = (first.rows.len(), first.table.value().dim(1)?);
    for part in &parts {
        let (height, columns) = part.table.value().dims2()?;
        if part.rows.len() != count || columns != width || part.rows.iter().any(|&row| row as usize >= height) {
            bail!("{} rows of `{}`, which is {height} × {columns}", part.rows.len(), part.table.name());
        }
    }
    let tables: Vec<_> = parts.iter().map(|part| (part.table.value(), &*part.rows)).collect();
    let output = kernels::sum_table_rows(&tables, count)?;
    if !tape.is_recording() {
        return Ok(Value::constant(output));
    }
    Ok(tape.record(output, move |g| {
        parts.iter().try_for_each(|part| {
            part.table.accumulate(|sum, accumulate| {
                kernels::sum_gradient_of_table(&g, sum, accumulate, &part.rows, part.padding)
            })
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::{elements, tensor};
    use crate::ops::finite_differences::{check_params, numbers};

    #[test]
    fn embedding_passes_finite_differences_where_rows_repeat() {
        // More columns than one task sums.
        let tables = [(numbers(5 * 67, 1), (5, 67)), (numbers(3 * 67, 2), (3, 67))];
        let rows: [Rc<[u32]>; 2] = [vec![4, 0, 4, 2].into(), vec![1, 1, 0, 1].into()];
        check_params(&tables, |tape, params| {
            let part = |index: usize| TableRows {
                table: Rc::clone(&params[index]),
                rows: Rc::clone(&rows[index]),
                padding: None,
            };
            embedding(tape, vec![part(0), part(1)])
        });
    }

    #[test]
    fn a_padding_row_gets_no_gradient_and_gradients_add_up() {
        let table = Param::new("t", tensor(numbers(3 * 2, 1), (3, 2)).unwrap()).unwrap();
        for _ in 0..2 {
            let tape = Tape::recording(None);
            let part = TableRows { table: Rc::clone(&table), rows: vec![1, 2, 2].into(), padding: Some(1) };
            let y = embedding(&tape, vec![part]).unwrap();
            tape.backward(&y, tensor(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], (3, 2)).unwrap()).unwrap();
        }
        assert_eq!(&*elements(table.gradient()).unwrap(), &[0.0, 0.0, 0.0, 0.0, 16.0, 20.0]);
    }
}

//! From rows to token ids, in the order in which training sees them.

mod column_survey;
pub mod columns;
pub mod exports;
mod flag_columns;
pub mod formats;
pub mod label_cell;
pub mod label_columns;
pub mod labelled;
pub mod list_column;
pub mod long_text;
pub mod near_duplicates;
mod python_literal;
pub mod recognise;
pub mod same_text;
pub mod sampler;
pub mod split;
pub mod split_files;
pub mod table;
pub mod token_texts;
pub mod tokenize;
mod tokenizer;

//! From rows to token ids, in the order in which training sees them.

pub mod label_columns;
pub mod rows;
pub mod sampler;
pub mod split;
pub mod table;
pub mod tokenize;

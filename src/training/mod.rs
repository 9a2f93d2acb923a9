//! The training loop and what it is made of.

pub mod checkpoint;
pub mod data_parallel;
pub mod early_stopping;
pub mod estimate;
mod log;
pub mod optimizer;
pub mod schedule;
pub mod scored;
pub mod trainer;

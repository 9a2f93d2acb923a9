//! The files that a run leaves behind.

pub mod adapter;
pub mod adapter_config;
pub mod classifier_file;
pub mod directory;
pub mod listing;
pub mod manifest;
pub mod model_card;
pub mod records;
pub mod report;
pub mod results;
pub mod tensorboard;

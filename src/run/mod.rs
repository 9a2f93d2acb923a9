//! The files that a run leaves behind.

pub mod adapter;
pub mod adapter_config;
mod base_facts;
pub mod classifier_file;
pub mod directory;
pub mod listing;
pub mod manifest;
mod markdown;
pub mod model_card;
pub mod records;
pub mod report;
pub mod results;
pub mod tensorboard;
pub mod trained_weights;
pub mod whole_model;

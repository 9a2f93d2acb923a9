//! The files that a run leaves behind.

pub mod adapter;
pub mod adapter_config;
mod base_facts;
pub mod classifier_file;
pub mod directory;
pub mod folds;
pub mod int8_file;
pub mod listing;
pub mod manifest;
mod markdown;
pub mod merged_card;
pub mod model_card;
mod model_config;
pub mod model_directory;
pub mod model_weights;
mod over_seeds;
pub mod publication;
pub mod records;
pub mod report;
pub mod results;
pub mod tensorboard;
pub mod trained;
pub mod trained_weights;
pub mod whole_model;

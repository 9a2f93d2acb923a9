//! An experiment's parts, made ready from its configuration.

pub mod agreement;
pub mod asked;
pub mod base_head;
pub mod base_model;
pub mod cache_plan;
pub mod checked;
pub mod choices;
pub mod data_issues;
pub mod dataset;
pub mod frozen;
pub mod init_adapter;
pub mod prepared;
pub mod resume;
pub mod run_report;
pub mod seed;
pub mod split_rows;
pub mod starter_config;
pub mod starter_report;
pub mod summary;
pub mod tuned;
pub mod warnings;
pub mod why;
pub mod yardstick;

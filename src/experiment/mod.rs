//! An experiment's parts, made ready from its configuration.

pub mod base_head;
pub mod base_model;
pub mod choices;
pub mod starter_config;
pub mod starter_report;

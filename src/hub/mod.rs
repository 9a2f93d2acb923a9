//! The Hugging Face Hub: its cache on disk, downloads into it, and the files of a model.

pub mod cache;
mod download;
mod environment;
pub mod model_files;
mod names;
mod requests;
pub mod upload;

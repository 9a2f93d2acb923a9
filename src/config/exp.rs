//! `exp:` where results go, and the seeds.

use std::path::PathBuf;

use serde::Serialize;

use super::reader::Section;

/// The section's keys, named as in the original project.
#[derive(Clone, Debug, Serialize)]
pub struct ExpConfig {
    /// Runs go to `<output_root>/<model>/<dataset>/run_<time>/`.
    pub output_root: PathBuf,
    /// One training a seed.
    pub seeds: Vec<u32>,
    /// A note that is recorded with the run.
    pub run_name: Option<String>,
}

impl ExpConfig {
    pub(super) fn read(section: &mut Section) -> Self {
        let config = Self {
            output_root: section.key("output_root", "outputs".to_owned()).into(),
            seeds: section.key("seeds", vec![1, 3, 4, 5]),
            run_name: section.optional("run_name"),
        };
        section.check(!config.seeds.is_empty(), "seeds", "is empty, expected at least one seed");
        let mut distinct = config.seeds.clone();
        distinct.sort_unstable();
        distinct.dedup();
        section.check(distinct.len() == config.seeds.len(), "seeds", "names a seed twice");
        config
    }
}

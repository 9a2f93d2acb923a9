//! `exp:` where results go, and the seeds.

use std::path::PathBuf;

use super::keys::{or, section};

section! {
    /// The section's keys, named as in the original project.
    pub struct ExpConfig in "exp" {
        /// Runs go to `<output_root>/<model>/<dataset>/run_<time>/`.
        output_root: PathBuf = or(PathBuf::from("outputs"));
        /// Train once for each seed.
        seeds: Vec<u32> = or(vec![1, 3, 4, 5])
            .check(|seeds| !seeds.is_empty(), "is empty, expected at least one seed")
            .check(|seeds| are_distinct(seeds), "names a seed twice");
        /// Train so many models more, each on all training rows but one part, and predict that part: every training row gets a
        /// prediction from a model that has not seen it. Thresholds are tuned on these predictions, and the report says
        /// whether more rows would help. Takes about 1.75 times `folds - 1` trainings more.
        folds: Option<usize> = or(None).at_least(2).at_most(100);
        /// A note that is recorded with the run.
        run_name: Option<String> = or(None);
    }
}

fn are_distinct(seeds: &[u32]) -> bool {
    (1..seeds.len()).all(|index| !seeds[..index].contains(&seeds[index]))
}

//! Which modules get an adapter, by peft's rules.

use anyhow::{Context, Result, ensure};
use regex::Regex;

/// The adapters of a model.
#[derive(Clone, Debug)]
pub struct LoraOptions {
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
    /// Probability with which an input of an adapter is left out.
    pub dropout: f64,
    /// Which modules.
    pub targets: Targets,
}

/// Which modules get an adapter.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Every linear layer of the base.
    AllLinear,
    /// Modules of these names, or whose dotted name ends with one of these.
    Names(Vec<String>),
    /// Modules whose whole name matches.
    Pattern(Regex),
}

impl Targets {
    /// `all-linear`, or a regular expression.
    ///
    /// # Errors
    /// If the expression does not parse.
    pub fn from_pattern(pattern: &str) -> Result<Self> {
        if pattern.eq_ignore_ascii_case("all-linear") {
            return Ok(Self::AllLinear);
        }
        let regex = Regex::new(&format!("^(?:{pattern})$"))
            .with_context(|| format!("`{pattern}` is neither all-linear nor a regular expression"))?;
        Ok(Self::Pattern(regex))
    }

    /// Whether the module of this dotted name gets an adapter.
    #[must_use]
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Names(names) => names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
            Self::Pattern(regex) => regex.is_match(module),
        }
    }

    /// Checks that something matches.
    ///
    /// # Errors
    /// If nothing does; the error lists what there is.
    pub fn check(&self, modules: &[String]) -> Result<()> {
        let mut kinds: Vec<&str> = modules.iter().filter_map(|name| name.rsplit('.').next()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        ensure!(
            modules.iter().any(|module| self.matches(module)),
            "lora_target_modules matches nothing in this model; its linear modules are {}, with names such as {}",
            kinds.join(", "),
            modules.first().map_or("", String::as_str)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_or_by_dotted_suffix() {
        let targets = Targets::Names(vec!["q_proj".into(), "mlp.up_proj".into()]);
        assert!(targets.matches("model.layers.0.self_attn.q_proj"));
        assert!(targets.matches("q_proj"));
        assert!(targets.matches("model.layers.3.mlp.up_proj"));
        assert!(!targets.matches("model.layers.3.other_up_proj"));
        assert!(!targets.matches("model.layers.0.self_attn.eq_proj"));
    }

    #[test]
    fn a_pattern_must_match_in_full() {
        let targets = Targets::from_pattern(r".*layers\.1\..*proj").unwrap();
        assert!(targets.matches("model.layers.1.mlp.up_proj"));
        assert!(!targets.matches("model.layers.11.mlp.up_proj"));
        assert!(matches!(Targets::from_pattern("ALL-linear").unwrap(), Targets::AllLinear));
        assert!(Targets::from_pattern("(").is_err());
    }

    #[test]
    fn matching_nothing_lists_what_there_is() {
        let modules = vec!["layers.0.q_proj".to_owned(), "layers.0.k_proj".to_owned()];
        let error = Targets::Names(vec!["query".into()]).check(&modules).unwrap_err().to_string();
        assert!(error.contains("k_proj, q_proj"), "{error}");
    }
}

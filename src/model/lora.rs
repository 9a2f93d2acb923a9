//! Low-rank adapters by peft's rules: which modules get one, of which rank, scaled by how much.

use anyhow::{Context, Result, ensure};
use fancy_regex::Regex;

/// The adapters of a model.
#[derive(Clone, Debug)]
pub struct LoraOptions {
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
    /// Probability with which an input of an adapter is left out.
    pub dropout: f64,
    /// Scales by α/√r in place of α/r (Kalajdzievski, 2023).
    pub use_rslora: bool,
    /// Ranks of some modules; the first pattern that matches counts.
    pub rank_pattern: Vec<ModulePattern<usize>>,
    /// α of some modules; the first pattern that matches counts.
    pub alpha_pattern: Vec<ModulePattern<f64>>,
    /// Modules that get an adapter.
    pub targets: Targets,
    /// Modules that get none although they are targets.
    pub exclude: Option<Targets>,
    /// Layers whose modules get adapters; none: all.
    pub layers: Option<LayerFilter>,
    /// Modules that peft saves whole, beside the adapters; none: those of the family.
    pub modules_to_save: Option<Vec<String>>,
    /// Every weight of the base is trained, and no module has an adapter.
    pub trains_base: bool,
}

/// The adapter of one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterShape {
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
    /// Multiplies `B A x`.
    pub scaling: f64,
}

impl LoraOptions {
    /// Plain LoRA of the same shape in all targets.
    #[must_use]
    pub fn new(rank: usize, alpha: f64, dropout: f64, targets: Targets) -> Self {
        Self {
            rank,
            alpha,
            dropout,
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            targets,
            exclude: None,
            layers: None,
            modules_to_save: None,
            trains_base: false,
        }
    }

    /// No adapters: a complete model.
    #[must_use]
    pub fn none() -> Self {
        Self::new(1, 1.0, 0.0, Targets::Nothing)
    }

    /// Every weight of the base is trained, and no module has an adapter.
    #[must_use]
    pub fn every_weight() -> Self {
        Self { trains_base: true, ..Self::none() }
    }

    /// The adapter of the module of this dotted name, if it gets one.
    #[must_use]
    pub fn shape_of(&self, module: &str) -> Option<AdapterShape> {
        // peft looks for whole components of the name here, and for the end of the name in `saves_whole`.
        let is_saved_whole = |name: &String| format!(".{module}.").contains(&format!(".{name}."));
        let is_adapted = self.targets.matches(module, self.layers.as_ref())
            && !self.exclude.as_ref().is_some_and(|exclude| exclude.matches(module, None))
            && !self.modules_to_save.iter().flatten().any(is_saved_whole);
        is_adapted.then(|| {
            let rank = first_match(&self.rank_pattern, module).unwrap_or(self.rank);
            let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
            let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            AdapterShape { rank, alpha, scaling: alpha / divisor }
        })
    }

    /// Returns true if peft saves a module whole: an entry of `modules_to_save` ends its name, or the name of a
    /// module around it.
    #[must_use]
    pub fn saves_whole(&self, module: &str) -> Option<bool> {
        let names = self.modules_to_save.as_ref()?;
        let dots = module.match_indices('.').map(|(at, _)| &module[..at]);
        Some(dots.chain([module]).any(|around| names.iter().any(|name| around.ends_with(name.as_str()))))
    }

    fn patterns(&self) -> impl Iterator<Item = &Regex> {
        let ranks = self.rank_pattern.iter().map(|pattern| &pattern.regex);
        let alphas = self.alpha_pattern.iter().map(|pattern| &pattern.regex);
        let layers = self.layers.iter().flat_map(|layers| &layers.patterns);
        let targets = [Some(&self.targets), self.exclude.as_ref()].into_iter().flatten().filter_map(Targets::regex);
        targets.chain(ranks).chain(alphas).chain(layers)
    }

    /// Checks that some module gets an adapter.
    pub fn check(&self, modules: &[String]) -> Result<()> {
        if matches!(self.targets, Targets::Nothing) {
            return Ok(());
        }
        let mut kinds: Vec<&str> = modules.iter().filter_map(|name| name.rsplit('.').next()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        self.patterns().try_for_each(|regex| {
            modules.iter().try_for_each(|module| regex.is_match(module).map(drop)).context(
                "an expression of lora_target_modules, or of the adapter's patterns, takes too many steps on the names of \
                 this model; write it without nested repetitions",
            )
        })?;
        ensure!(
            modules.iter().any(|module| self.shape_of(module).is_some()),
            "lora_target_modules matches nothing in this model; its linear modules are {}, with names such as {}; \
             `all-linear` takes all of them",
            kinds.join(", "),
            modules.first().map_or("", String::as_str)
        );
        Ok(())
    }
}

/// A value for modules whose name, or its end from a dot on, matches an expression.
#[derive(Clone, Debug)]
pub struct ModulePattern<T> {
    /// The pattern as it was written.
    pub pattern: String,
    /// r or α.
    pub value: T,
    regex: Regex,
}

impl<T> ModulePattern<T> {
    /// A pattern and its value.
    pub fn new(pattern: &str, value: T) -> Result<Self> {
        let regex = compile(&format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?;
        Ok(Self { pattern: pattern.to_owned(), value, regex })
    }
}

fn first_match<T: Copy>(patterns: &[ModulePattern<T>], module: &str) -> Option<T> {
    patterns.iter().find(|pattern| is_match(&pattern.regex, module)).map(|pattern| pattern.value)
}

/// Whether an expression matches; [`LoraOptions::check`] has tried it.
fn is_match(regex: &Regex, module: &str) -> bool {
    regex.is_match(module).unwrap_or(false)
}

/// Python's expressions may look around, which the plain library does not.
fn compile(regex: &str, written: &str) -> Result<Regex> {
    Regex::new(regex).with_context(|| format!("`{written}` is not a regular expression that llmcls can read"))
}

/// `layers_to_transform`: layers by index. It chooses among modules that a list of names takes by their ends.
#[derive(Clone, Debug)]
pub struct LayerFilter {
    indices: Vec<usize>,
    patterns: Vec<Regex>,
}

impl LayerFilter {
    /// Layers of these indices, in lists of modules of these names; no names: in any list.
    pub fn new(indices: Vec<usize>, lists: &[String]) -> Result<Self> {
        let patterns = match lists {
            [] => vec![compile(r"^.*?\.[^.]*\.(?P<idx>\d+)\.", "layers_pattern")?],
            lists => lists
                .iter()
                .map(|list| compile(&format!(r"^(?:|.*?\.)(?:{list})\.(?P<idx>\d+)\."), list))
                .collect::<Result<_>>()?,
        };
        Ok(Self { indices, patterns })
    }

    fn takes(&self, module: &str) -> bool {
        let found = self.patterns.iter().find_map(|pattern| pattern.captures(module).ok()?);
        let index = found.and_then(|captures| captures.name("idx")?.as_str().parse().ok());
        index.is_some_and(|index: usize| self.indices.contains(&index))
    }
}

/// Modules, by name.
#[derive(Clone, Debug)]
pub enum Targets {
    /// No module.
    Nothing,
    /// Every linear layer of the base.
    AllLinear,
    /// Modules of these names, or whose dotted name ends with one of these.
    Names(Vec<String>),
    /// Modules whose whole name matches.
    Pattern(FullMatch),
}

/// A regular expression that must match in full.
#[derive(Clone, Debug)]
pub struct FullMatch {
    /// The pattern as it was written.
    pub pattern: String,
    regex: Regex,
}

impl Targets {
    /// `all-linear`, or a regular expression.
    pub fn from_pattern(pattern: &str) -> Result<Self> {
        if pattern.eq_ignore_ascii_case("all-linear") {
            return Ok(Self::AllLinear);
        }
        let regex = Regex::new(&format!("^(?:{pattern})$"))
            .with_context(|| format!("`{pattern}` is neither all-linear nor a regular expression"))?;
        Ok(Self::Pattern(FullMatch { pattern: pattern.to_owned(), regex }))
    }

    /// Modules of these names, or whose dotted name ends with one of these.
    #[must_use]
    pub fn names(names: &[&str]) -> Self {
        Self::Names(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn regex(&self) -> Option<&Regex> {
        match self {
            Self::Pattern(full) => Some(&full.regex),
            Self::Nothing | Self::AllLinear | Self::Names(_) => None,
        }
    }

    /// Returns true if the module of this dotted name is a target.
    fn matches(&self, module: &str, layers: Option<&LayerFilter>) -> bool {
        match self {
            Self::Nothing => false,
            Self::AllLinear => layers.is_none_or(|layers| layers.takes(module)),
            Self::Names(names) => {
                let ends = |name: &String| module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                names.iter().any(|name| name == module)
                    || names.iter().any(ends) && layers.is_none_or(|layers| layers.takes(module))
            }
            Self::Pattern(full) => is_match(&full.regex, module),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(targets: Targets) -> LoraOptions {
        LoraOptions::new(4, 6.0, 0.0, targets)
    }

    #[test]
    fn names_match_whole_or_by_dotted_suffix() {
        let lora = plain(Targets::names(&["q_proj", "mlp.up_proj"]));
        for (module, is_adapted) in [
            ("model.layers.0.self_attn.q_proj", true),
            ("q_proj", true),
            ("model.layers.3.mlp.up_proj", true),
            ("model.layers.3.other_up_proj", false),
            ("model.layers.0.self_attn.eq_proj", false),
        ] {
            assert_eq!(lora.shape_of(module).is_some(), is_adapted, "{module}");
        }
    }

    #[test]
    fn a_pattern_must_match_in_full() {
        let lora = plain(Targets::from_pattern(r".*layers\.1\..*proj").unwrap());
        assert!(lora.shape_of("model.layers.1.mlp.up_proj").is_some());
        assert!(lora.shape_of("model.layers.11.mlp.up_proj").is_none());
        assert!(matches!(Targets::from_pattern("ALL-linear").unwrap(), Targets::AllLinear));
        assert!(Targets::from_pattern("(").is_err());
    }

    /// As Python's `re.fullmatch`, which peft uses.
    #[test]
    fn patterns_may_look_around() {
        let modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"];
        for (pattern, expected) in [
            (r".*layers\.(?!0\.).*_proj", [false, true, true]),
            (r"(?!.*mlp).*_proj", [true, false, false]),
            (r".*(?<=mlp\.)up_proj", [false, true, true]),
            (r".*\.(\d)(?!\d).*(?=_proj)_proj", [true, true, false]),
            (r".*up|.*up_proj", [false, true, true]),
        ] {
            let lora = plain(Targets::from_pattern(pattern).unwrap());
            assert_eq!(modules.map(|module| lora.shape_of(module).is_some()), expected, "{pattern}");
        }
        let lora = plain(Targets::from_pattern(r"((?=m)m|.|..)*(?<!x)z").unwrap());
        let error = format!("{:#}", lora.check(&["model".repeat(40)]).unwrap_err());
        assert!(error.contains("takes too many steps"), "{error}");
    }

    #[test]
    fn matching_nothing_lists_the_modules_and_names_all_linear() {
        let modules = vec!["layers.0.q_proj".to_owned(), "layers.0.k_proj".to_owned()];
        let error = plain(Targets::names(&["query"])).check(&modules).unwrap_err().to_string();
        assert!(error.contains("k_proj, q_proj") && error.contains("all-linear"), "{error}");
    }

    /// Matches `get_pattern_key` of peft 0.21.2.
    #[test]
    fn patterns_give_ranks_and_alphas_by_the_end_of_a_name_and_the_first_counts() {
        let mut lora = plain(Targets::AllLinear);
        lora.rank_pattern = vec![
            ModulePattern::new(r"layers\.1\.self_attn\.q_proj", 9).unwrap(),
            ModulePattern::new("q_proj|k_proj", 2).unwrap(),
        ];
        lora.alpha_pattern = vec![ModulePattern::new("k_proj", 5.0).unwrap()];
        let shape = |module: &str| lora.shape_of(module).map(|shape| (shape.rank, shape.alpha, shape.scaling)).unwrap();
        assert_eq!(shape("model.layers.1.self_attn.q_proj"), (9, 6.0, 6.0 / 9.0));
        assert_eq!(shape("model.layers.11.self_attn.q_proj"), (2, 6.0, 3.0));
        assert_eq!(shape("model.layers.0.self_attn.k_proj"), (2, 5.0, 2.5));
        assert_eq!(shape("model.layers.0.self_attn.eq_proj"), (4, 6.0, 1.5));
        lora.use_rslora = true;
        assert_eq!(lora.shape_of("v_proj").unwrap().scaling, 3.0);
    }

    /// Matches `check_target_module_exists` of peft 0.21.2.
    #[test]
    fn layers_and_exclusions_choose_among_the_targets() {
        let mut lora = plain(Targets::names(&["q_proj", "model.layers.0.self_attn.v_proj"]));
        lora.layers = Some(LayerFilter::new(vec![1], &[]).unwrap());
        let adapted = |lora: &LoraOptions, module: &str| lora.shape_of(module).is_some();
        assert!(adapted(&lora, "model.layers.1.self_attn.q_proj"));
        assert!(!adapted(&lora, "model.layers.11.self_attn.q_proj"));
        assert!(adapted(&lora, "model.layers.0.self_attn.v_proj"), "a whole name counts in every layer");
        lora.layers = Some(LayerFilter::new(vec![1], &["blocks".to_owned()]).unwrap());
        assert!(!adapted(&lora, "model.layers.1.self_attn.q_proj"));
        lora.layers = None;
        lora.exclude = Some(Targets::from_pattern(r".*\.2\..*").unwrap());
        assert!(!adapted(&lora, "model.layers.2.self_attn.q_proj"));
        assert!(adapted(&lora, "model.layers.12.self_attn.q_proj"));
        lora.modules_to_save = Some(vec!["layers".to_owned()]);
        assert!(!adapted(&lora, "model.layers.12.self_attn.q_proj"));
    }

    #[test]
    fn modules_saved_whole_are_named_by_their_ends() {
        let mut lora = plain(Targets::AllLinear);
        assert_eq!(lora.saves_whole("bert.pooler.dense"), None);
        lora.modules_to_save = Some(vec!["classifier".to_owned()]);
        assert_eq!(lora.saves_whole("bert.pooler.dense"), Some(false));
        assert_eq!(lora.saves_whole("classifier.dense"), Some(true));
        lora.modules_to_save = Some(vec!["pooler".to_owned()]);
        assert_eq!(lora.saves_whole("bert.pooler.dense"), Some(true));
    }
}

//! A mapping of the configuration: its keys are taken one by one, and everything wrong with it is collected.

use std::cell::RefCell;
use std::rc::Rc;

use super::tree::{Node, Tree};

/// A mapping whose keys are taken one by one; what is left over is unknown.
pub struct Section {
    name: String,
    entries: Vec<(String, String, Tree)>,
    known: Vec<&'static str>,
    given: Vec<&'static str>,
    problems: Rc<RefCell<Vec<String>>>,
}

impl Section {
    pub(super) fn root(tree: Tree) -> Self {
        let problems = Rc::default();
        Self::open(String::new(), Some(tree), problems)
    }

    fn open(name: String, tree: Option<Tree>, problems: Rc<RefCell<Vec<String>>>) -> Self {
        let entries = match tree.map(|tree| (tree.node, tree.location)) {
            None | Some((Node::Null, _)) => Vec::new(),
            Some((Node::Map(entries), _)) => entries,
            Some((other, location)) => {
                let what = if name.is_empty() { "the file".to_owned() } else { format!("`{name}`") };
                problems.borrow_mut().push(format!("{location}: {what} is `{}`, expected a mapping", other.describe()));
                Vec::new()
            }
        };
        Self { name, entries, known: Vec::new(), given: Vec::new(), problems }
    }

    /// A mapping inside this one.
    pub(super) fn section(&mut self, name: &'static str) -> Self {
        let tree = self.take(name).map(|(_, tree)| tree);
        Self::open(self.full_name(name), tree, Rc::clone(&self.problems))
    }

    /// Whether a key was given, and not left to its default.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }

    /// Records a problem of one key: `message` follows the location and the key's name.
    pub fn problem(&self, name: &str, message: &str) {
        self.push(format!("`{}` {message}", self.full_name(name)));
    }

    /// Records a problem unless `holds`.
    pub fn check(&self, holds: bool, name: &str, message: &str) {
        if !holds {
            self.problem(name, message);
        }
    }

    /// All problems found in this mapping and those inside it.
    pub(super) fn finish(self) -> Vec<String> {
        let problems = Rc::clone(&self.problems);
        drop(self);
        problems.take()
    }

    pub(super) fn push(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn full_name(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) }
    }

    pub(super) fn take(&mut self, name: &'static str) -> Option<(String, Tree)> {
        self.known.push(name);
        let index = self.entries.iter().position(|(key, ..)| key == name)?;
        let (_, location, tree) = self.entries.remove(index);
        self.given.push(name);
        Some((location, tree))
    }
}

impl Drop for Section {
    /// Reports every key that nothing has read as unknown.
    fn drop(&mut self) {
        for (key, location, _) in std::mem::take(&mut self.entries) {
            let nearest = self
                .known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, &key).total_cmp(&strsim::jaro_winkler(b, &key)));
            let hint = match nearest {
                Some(name) if strsim::jaro_winkler(name, &key) > 0.8 => format!("; did you mean `{name}`?"),
                _ => format!("; known here: {}", self.known.join(", ")),
            };
            self.push(format!("{location}: unknown key `{}`{hint}", self.full_name(&key)));
        }
    }
}

//! Reads an answer that nothing constrained: which labels it lists, which it invents, and whether it is a list at all.

use serde_json::Value as Json;

/// An answer, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// True for each label that is listed.
    pub labels: Vec<bool>,
    /// Names that are listed and are no label.
    pub invented: Vec<String>,
    /// True if there is no JSON list of texts: then no label counts.
    pub is_broken: bool,
}

/// Reads the first JSON list in a text; what stands around it does not count.
#[must_use]
pub fn read(text: &str, labels: &[String]) -> Read {
    let none = Read { labels: vec![false; labels.len()], is_broken: true, ..Read::default() };
    let Some(start) = text.find('[') else { return none };
    let first = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Json>().next();
    let Some(Ok(Json::Array(items))) = first else { return none };
    let mut read = Read { is_broken: false, ..none };
    for item in items {
        let Json::String(name) = item else {
            return Read { labels: vec![false; labels.len()], is_broken: true, ..Read::default() };
        };
        match labels.iter().position(|label| *label == name) {
            Some(label) => read.labels[label] = true,
            None => read.invented.push(name),
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_inventions_and_broken_lists_are_told_apart() {
        let labels = ["a", "b c", "é"].map(str::to_owned);
        let of = |text: &str| {
            let read = read(text, &labels);
            (read.labels, read.invented.join("+"), read.is_broken)
        };
        assert_eq!(of("Labels: [\"é\", \"a\",\"x\", \"A\"] because"), (vec![true, false, true], "x+A".into(), false));
        assert_eq!(of("[]"), (vec![false; 3], String::new(), false));
        for broken in ["a, b c", "[\"a\"", "[\"a\", 3]", "[a]", "", "{\"a\": 1}", "['a']"] {
            assert_eq!(of(broken), (vec![false; 3], String::new(), true), "{broken}");
        }
        assert_eq!(of("[\"b c\"] [\"a\"]").0, [false, true, false]);
    }
}

//! Dependency cycles between files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::modules::Tree;
use super::references::{Arrows, written};

/// Returns the arrows that can be part of a forbidden circle. A module and its submodules may refer to each other.
pub(crate) fn between_branches(tree: &Tree, arrows: &Arrows) -> Arrows {
    let pairs = tree.parents_and_children();
    let is_pair =
        |one: &str, other: &str| pairs.contains(&(one, other)) || pairs.contains(&(other, one));
    arrows
        .iter()
        .filter(|((from, to), _)| !is_pair(from, to))
        .map(|(ends, paths)| (ends.clone(), paths.clone()))
        .collect()
}

/// Returns the strongly connected components with more than one file, sorted.
pub(crate) fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = next
        .keys()
        .map(|file| (*file, reached_from(file, &next)))
        .collect();
    let mut found = BTreeSet::new();
    for (file, targets) in &reached {
        if targets.contains(file) {
            let circle: Vec<String> = targets
                .iter()
                .filter(|target| reached.get(*target).is_some_and(|back| back.contains(file)))
                .map(|target| (*target).to_owned())
                .collect();
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn reached_from<'a>(file: &'a str, next: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![file];
    while let Some(file) = open.pop() {
        for target in next.get(file).into_iter().flatten() {
            if reached.insert(*target) {
                open.push(target);
            }
        }
    }
    reached
}

/// Returns the differences between the circles found and the known ones, empty if there are none.
pub(crate) fn compare(found: &[Vec<String>], known: &[&[&str]], arrows: &Arrows) -> String {
    let known: BTreeSet<Vec<String>> = known
        .iter()
        .map(|circle| {
            let mut circle: Vec<String> = circle.iter().map(|&file| file.to_owned()).collect();
            circle.sort();
            circle
        })
        .collect();
    let found: BTreeSet<Vec<String>> = found.iter().cloned().collect();
    let mut report = String::new();
    for circle in found.difference(&known) {
        let _ = writeln!(
            report,
            "These {} files import each other in a circle. Move what two of them need into a file below both:",
            circle.len()
        );
        report += &described(circle, arrows);
    }
    for circle in known.difference(&found) {
        let _ = writeln!(
            report,
            "This circle is no more as CIRCLES_LEFT has it. Remove the entry, or keep what is left of it: {circle:?}"
        );
    }
    report
}

/// Formats the arrows within a circle, one per line.
fn described(circle: &[String], arrows: &Arrows) -> String {
    let mut text = String::new();
    for ((from, to), paths) in arrows {
        if circle.contains(from) && circle.contains(to) {
            let _ = writeln!(text, "    {from} -> {to}: {}", written(paths));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::tests::sources;
    use crate::references;

    fn check(files: &[(&str, &str)], known: &[&[&str]]) -> String {
        let tree = Tree::new("src/lib.rs", &sources(files));
        let arrows = between_branches(&tree, &references::arrows(&tree));
        compare(&circles(&arrows), known, &arrows)
    }

    #[test]
    fn circle_of_two_is_reported_with_its_imports() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "use crate::b::B; pub struct A;"),
            ("src/b.rs", "pub struct B; fn f(_: super::a::A) {}"),
        ];
        let report = check(&files, &[]);
        assert!(
            report.contains("src/a.rs -> src/b.rs: crate::b::B"),
            "{report}"
        );
        assert!(
            report.contains("src/b.rs -> src/a.rs: super::a::A"),
            "{report}"
        );
        assert_eq!(check(&files, &[&["src/b.rs", "src/a.rs"]]), "");
    }

    #[test]
    fn circle_of_three_over_a_reexport_is_reported() {
        let files = [
            ("src/lib.rs", "mod group; mod c;"),
            ("src/group/mod.rs", "mod a; mod b; pub use b::B;"),
            ("src/group/a.rs", "use super::B; pub struct A;"),
            ("src/group/b.rs", "use crate::c::C; pub struct B;"),
            ("src/c.rs", "use crate::group::a::A; pub struct C;"),
        ];
        let report = check(&files, &[]);
        assert!(report.contains("These 3 files"), "{report}");
        assert!(
            report.contains("src/group/a.rs -> src/group/b.rs: super::B"),
            "{report}"
        );
    }

    #[test]
    fn parent_and_child_are_no_circle() {
        let files = [
            ("src/lib.rs", "mod a;"),
            ("src/a.rs", "mod b; use b::B; pub struct A;"),
            ("src/a/b.rs", "use super::A; pub struct B;"),
        ];
        assert_eq!(check(&files, &[]), "");
    }

    #[test]
    fn broken_circle_must_leave_the_list() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "use crate::b::B;"),
            ("src/b.rs", "pub struct B;"),
        ];
        let report = check(&files, &[&["src/a.rs", "src/b.rs"]]);
        assert!(report.contains("no more"), "{report}");
    }

    #[test]
    fn circle_that_grew_is_reported() {
        let files = [
            ("src/lib.rs", "mod a; mod b; mod c;"),
            ("src/a.rs", "use crate::b::B; pub struct A;"),
            ("src/b.rs", "use crate::c::C; pub struct B;"),
            ("src/c.rs", "use crate::a::A; pub struct C;"),
        ];
        let report = check(&files, &[&["src/a.rs", "src/b.rs"]]);
        assert!(report.contains("These 3 files"), "{report}");
    }

    #[test]
    fn test_code_closes_no_circle() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "use crate::b::B; pub struct A;"),
            (
                "src/b.rs",
                "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }",
            ),
        ];
        assert_eq!(check(&files, &[]), "");
    }
}

//! The layers of a folder, in which imports only go down.

use std::collections::BTreeSet;

use super::references::{Arrows, written};

/// The layers of one folder, bottom first. A name without `.rs` is a folder, or a single file of that name. A file belongs to the
/// longest name that fits: `a/b` takes that part out of `a`.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) folder: &'static str,
    /// Names in one layer may import each other, but not in a circle.
    pub(crate) layers: &'static [&'static [&'static str]],
    /// Whether each file in the folder must belong to a layer, even if some layer does not exist.
    pub(crate) is_complete: bool,
    /// Known imports that go up, as source and target. Remove an entry when you fix it, and add none.
    pub(crate) upward_left: &'static [(&'static str, &'static str)],
}

impl Layers {
    /// Returns the layer of a file, and its name in the table.
    fn layer_of(&self, file: &str) -> Option<(usize, &'static str)> {
        let inside = file.strip_prefix(self.folder)?.strip_prefix('/')?;
        let fits = |name: &str| {
            inside
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
        };
        let names = self
            .layers
            .iter()
            .enumerate()
            .flat_map(|(level, names)| names.iter().map(move |name| (level, *name)));
        names
            .filter(|(_, name)| fits(name))
            .max_by_key(|(_, name)| name.len())
    }

    fn exists(&self, name: &str, files: &BTreeSet<&str>) -> bool {
        let file = format!("{}/{name}", self.folder);
        let folder = format!("{file}/");
        let flat = format!("{file}.rs");
        files
            .iter()
            .any(|path| path.starts_with(&folder) || **path == file || **path == flat)
    }

    /// Lists imports that go up, files without a layer, and names without a file, one per line.
    pub(crate) fn violations(&self, files: &BTreeSet<&str>, arrows: &Arrows) -> Vec<String> {
        let mut wrong = Vec::new();
        let names: Vec<&str> = self.layers.iter().copied().flatten().copied().collect();
        let missing: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !self.exists(name, files))
            .collect();
        if self.is_complete {
            wrong.extend(missing.iter().map(|name| {
                format!(
                    "{}: the table has {name}, which does not exist",
                    self.folder
                )
            }));
        }
        if self.is_complete || missing.is_empty() {
            let inside = format!("{}/", self.folder);
            wrong.extend(
                files
                    .iter()
                    .filter(|file| file.starts_with(&inside) && self.layer_of(file).is_none())
                    .map(|file| format!("{file} belongs to no layer of {}", self.folder)),
            );
        }
        let mut upward = BTreeSet::new();
        for ((from, to), paths) in arrows {
            let (Some((low, from_name)), Some((high, to_name))) =
                (self.layer_of(from), self.layer_of(to))
            else {
                continue;
            };
            if high <= low {
                continue;
            }
            upward.insert((from.as_str(), to.as_str()));
            if !self.upward_left.contains(&(from, to)) {
                wrong.push(format!(
                    "{from} -> {to}: {} ({from_name} is below {to_name})",
                    written(paths)
                ));
            }
        }
        wrong.extend(
            self.upward_left
                .iter()
                .filter(|ends| !upward.contains(*ends))
                .map(|(from, to)| {
                    format!("{from} -> {to} goes up no more: remove it from upward_left")
                }),
        );
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::Tree;
    use crate::modules::tests::sources;
    use crate::references;

    const LAYERS: Layers = Layers {
        folder: "src/engine",
        layers: &[&["parts"], &["hub", "pool"], &["mod.rs"]],
        is_complete: false,
        upward_left: &[],
    };

    fn check(layers: &Layers, files: &[(&str, &str)]) -> Vec<String> {
        let tree = Tree::new("src/lib.rs", &sources(files));
        layers.violations(&tree.product_files(), &references::arrows(&tree))
    }

    #[test]
    fn import_that_goes_up_is_reported() {
        let wrong = check(
            &LAYERS,
            &[
                ("src/lib.rs", "mod engine;"),
                (
                    "src/engine/mod.rs",
                    "mod parts; mod hub; pub use hub::Hub; pub struct Engine;",
                ),
                ("src/engine/parts/mod.rs", "mod timers;"),
                ("src/engine/parts/timers.rs", "use crate::engine::Hub;"),
                ("src/engine/hub.rs", "use super::Engine; pub struct Hub;"),
            ],
        );
        assert_eq!(
            wrong,
            [
                "src/engine/hub.rs -> src/engine/mod.rs: super::Engine (hub is below mod.rs)",
                "src/engine/parts/timers.rs -> src/engine/hub.rs: crate::engine::Hub (parts is below hub)",
            ]
        );
    }

    #[test]
    fn imports_down_and_within_a_layer_are_allowed() {
        let wrong = check(
            &LAYERS,
            &[
                ("src/lib.rs", "mod engine;"),
                (
                    "src/engine/mod.rs",
                    "mod parts; mod hub; mod pool; use hub::Hub;",
                ),
                ("src/engine/parts.rs", "pub struct Part;"),
                (
                    "src/engine/hub.rs",
                    "use super::parts::Part; pub struct Hub;",
                ),
                (
                    "src/engine/pool.rs",
                    "use super::hub::Hub; use super::parts::Part;",
                ),
            ],
        );
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn longest_name_decides_the_layer() {
        let layers = Layers {
            layers: &[&["parts"], &["hub"], &["parts/setup"]],
            ..LAYERS
        };
        let files = [
            ("src/lib.rs", "mod engine;"),
            ("src/engine/mod.rs", "mod parts; mod hub;"),
            ("src/engine/parts/mod.rs", "mod setup;"),
            ("src/engine/parts/setup.rs", "use crate::engine::hub::Hub;"),
            ("src/engine/hub.rs", "pub struct Hub;"),
        ];
        assert_eq!(
            check(&layers, &files),
            ["src/engine/mod.rs belongs to no layer of src/engine"]
        );
    }

    #[test]
    fn removed_upward_import_must_leave_the_list() {
        let layers = Layers {
            upward_left: &[
                ("src/engine/parts.rs", "src/engine/hub.rs"),
                ("src/engine/parts.rs", "src/engine/pool.rs"),
            ],
            ..LAYERS
        };
        let files = [
            ("src/lib.rs", "mod engine;"),
            ("src/engine/mod.rs", "mod parts; mod hub;"),
            ("src/engine/parts.rs", "use super::hub::Hub;"),
            ("src/engine/hub.rs", "pub struct Hub;"),
        ];
        assert_eq!(
            check(&layers, &files),
            [
                "src/engine/parts.rs -> src/engine/pool.rs goes up no more: remove it from upward_left"
            ]
        );
    }

    #[test]
    fn file_outside_all_layers_is_reported_once_all_exist() {
        let mut files = vec![
            ("src/lib.rs", "mod engine;"),
            ("src/engine/mod.rs", "mod parts; mod hub; mod stray;"),
            ("src/engine/parts.rs", ""),
            ("src/engine/hub.rs", ""),
            ("src/engine/stray.rs", ""),
        ];
        assert!(check(&LAYERS, &files).is_empty());
        files[1].1 = "mod parts; mod hub; mod pool; mod stray;";
        files.push(("src/engine/pool.rs", ""));
        assert_eq!(
            check(&LAYERS, &files),
            ["src/engine/stray.rs belongs to no layer of src/engine"]
        );
    }

    #[test]
    fn unknown_name_in_a_complete_table_is_reported() {
        let layers = Layers {
            is_complete: true,
            ..LAYERS
        };
        let files = [
            ("src/lib.rs", "mod engine;"),
            ("src/engine/mod.rs", "mod parts; mod hub;"),
            ("src/engine/parts.rs", ""),
            ("src/engine/hub.rs", ""),
        ];
        assert_eq!(
            check(&layers, &files),
            ["src/engine: the table has pool, which does not exist"]
        );
    }
}

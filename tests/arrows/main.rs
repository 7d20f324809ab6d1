//! Checks the structure of the sources. ARCHITECTURE.md draws the arrows between modules; these tests hold the code to them:
//! no circles among files, imports go down the layers only, the state of a type stays in its folder, and public types can grow.

mod cfg;
mod circles;
mod exhaustive;
mod layers;
mod modules;
mod ownership;
mod references;
mod rules;

use std::collections::BTreeSet;
use std::path::Path;

use modules::{Tree, read_sources};
use rules::{ARROWS, CIRCLES_LEFT, IMPLS, LAYERS, LEAVES, MEMBERS, SLAB_LOOKUPS_MAX};

/// The root folder of the repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn tree_of(root: &str) -> Tree {
    let (folder, _) = root.rsplit_once('/').unwrap();
    let repository = Path::new(REPOSITORY);
    Tree::new(root, &read_sources(repository, folder))
}

fn assert_none(wrong: &[String], rule: &str) {
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

#[test]
fn modules_use_only_what_the_arrows_allow() {
    let tree = tree_of("src/lib.rs");
    let mut wrong = BTreeSet::new();
    for reference in references::references(&tree, true) {
        let from = &tree.modules[reference.module];
        let Some(path) = tree.absolute(reference.module, &reference.path) else {
            continue;
        };
        let Some(used) = path.first() else {
            continue;
        };
        let module = match from.file.strip_prefix("src/").unwrap() {
            "lib.rs" => "lib",
            file => file.split(['/', '.']).next().unwrap(),
        };
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("ARROWS has no entry for {module} ({})", from.file));
        let part = path[..path.len().min(2)].join("::");
        let is_leaf =
            LEAVES.contains(&used.as_str()) && !["protocol", "transport"].contains(&module);
        let is_allowed = allowed.iter().any(|arrow| arrow == used || *arrow == part);
        // A leaf may use another leaf only if an arrow says so.
        let by_leaf = LEAVES.contains(&module);
        if used != module && !is_allowed && (by_leaf || !is_leaf) {
            wrong.insert(format!("{}: crate::{part}", from.file));
        }
    }
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert_none(&wrong, "arrows that ARCHITECTURE.md does not have");
}

#[test]
fn files_import_each_other_in_no_circle() {
    let mut arrows = references::Arrows::new();
    for root in MEMBERS {
        let tree = tree_of(root);
        let found = references::arrows(&tree);
        assert!(found.len() > 30, "{root}: few imports are found: {found:?}");
        arrows.extend(circles::between_branches(&tree, &found));
    }
    let report = circles::compare(&circles::circles(&arrows), CIRCLES_LEFT, &arrows);
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn imports_go_down_the_layers_only() {
    let tree = tree_of("src/lib.rs");
    let arrows = references::arrows(&tree);
    let files = tree.product_files();
    assert!(files.len() > 100, "the sources are found: {files:?}");
    let wrong: Vec<String> = LAYERS
        .iter()
        .flat_map(|layers| layers.violations(&files, &arrows))
        .collect();
    assert_none(&wrong, "imports that go up, or files outside the layers");
}

#[test]
fn impl_blocks_stay_in_the_folder_of_their_type() {
    let tree = tree_of("src/lib.rs");
    let wrong: Vec<String> = IMPLS
        .iter()
        .flat_map(|(name, folder, left)| {
            ownership::misplaced(&ownership::files_with_impl(&tree, name), name, folder, left)
        })
        .collect();
    assert_none(&wrong, "impl blocks outside the folder that owns the state");
}

#[test]
fn connections_are_looked_up_in_few_places() {
    let found = ownership::slab_lookups(&tree_of("src/lib.rs"));
    let count: usize = found.values().sum();
    assert!(
        count <= SLAB_LOOKUPS_MAX,
        "{count} look-ups of connections, at most {SLAB_LOOKUPS_MAX}: pass the connection on instead: {found:?}"
    );
    assert_eq!(
        count, SLAB_LOOKUPS_MAX,
        "fewer look-ups than allowed: set SLAB_LOOKUPS_MAX to {count}"
    );
}

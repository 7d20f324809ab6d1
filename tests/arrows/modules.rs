//! The module tree of a crate, and the lookup of the file that defines the target of a path.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Item, ItemMod, ItemUse, Lit, Meta, UseTree};

use super::cfg;

/// The maximum length of a chain of re-exports. Only circular imports exceed it.
const DEPTH_MAX: usize = 24;

/// Source files by path: relative to the repository, with `/`.
pub(crate) type Sources = BTreeMap<String, String>;

/// Reads all Rust sources below `folder`.
pub(crate) fn read_sources(repository: &Path, folder: &str) -> Sources {
    let mut sources = Sources::new();
    let mut folders = vec![repository.join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{} cannot be read: {error}", folder.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(repository).unwrap();
                let parts: Vec<_> = relative.iter().map(|part| part.to_str().unwrap()).collect();
                sources.insert(parts.join("/"), fs::read_to_string(&path).unwrap());
            }
        }
    }
    sources
}

/// One leaf of a `use` declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    /// The imported name. `None` for a glob, and for `as _`.
    pub(crate) name: Option<String>,
    pub(crate) is_glob: bool,
}

pub(crate) struct Module {
    /// The path from the crate root, which is empty for the root itself.
    pub(crate) path: Vec<String>,
    pub(crate) file: String,
    pub(crate) is_test: bool,
    pub(crate) items: Vec<Item>,
    parent: Option<usize>,
    /// The submodules by name. A name has several if conditions select one of them.
    children: HashMap<String, Vec<usize>>,
    defined: HashSet<String>,
    imports: Vec<Import>,
    /// Imports inside functions, which other modules can't use.
    local_imports: Vec<Import>,
}

/// The target of a path: a module, or an item that a module's file defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Module(usize),
    DefinedIn(usize),
}

pub(crate) struct Tree {
    pub(crate) modules: Vec<Module>,
}

impl Tree {
    /// # Panics
    /// Panics if a file is missing or is not valid Rust.
    pub(crate) fn new(root: &str, sources: &Sources) -> Self {
        let mut tree = Self {
            modules: Vec::new(),
        };
        let (folder, _) = root.rsplit_once('/').unwrap();
        let module = tree.add(None, None, root, false, parse(root, sources));
        tree.descend(module, folder, folder, sources);
        tree
    }

    /// Returns the files of product builds.
    pub(crate) fn product_files(&self) -> BTreeSet<&str> {
        self.modules
            .iter()
            .filter(|module| !module.is_test)
            .map(|module| module.file.as_str())
            .collect()
    }

    fn add(
        &mut self,
        parent: Option<usize>,
        name: Option<&str>,
        file: &str,
        is_test: bool,
        items: Vec<Item>,
    ) -> usize {
        let id = self.modules.len();
        let mut path = parent.map_or_else(Vec::new, |parent| self.modules[parent].path.clone());
        path.extend(name.map(str::to_owned));
        let is_test = is_test || parent.is_some_and(|parent| self.modules[parent].is_test);
        let mut imports = Vec::new();
        let mut local = LocalImports(Vec::new());
        for item in &items {
            match item {
                Item::Use(_) if !is_test && cfg::is_test_only(cfg::of_item(item)) => {}
                Item::Use(declaration) => imports.extend(flattened(declaration)),
                Item::Mod(_) => {}
                _ => local.visit_item(item),
            }
        }
        self.modules.push(Module {
            path,
            file: file.to_owned(),
            is_test,
            defined: items.iter().filter_map(defined_name).collect(),
            items,
            parent,
            children: HashMap::new(),
            imports,
            local_imports: local.0,
        });
        if let (Some(parent), Some(name)) = (parent, name) {
            self.modules[parent]
                .children
                .entry(name.to_owned())
                .or_default()
                .push(id);
        }
        id
    }

    /// Adds the modules that `module` declares. Their files are in `children_folder`; `#[path]` is relative to `path_folder`.
    fn descend(
        &mut self,
        module: usize,
        children_folder: &str,
        path_folder: &str,
        sources: &Sources,
    ) {
        let declarations: Vec<ItemMod> = self.modules[module]
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Mod(declaration) => Some(declaration.clone()),
                _ => None,
            })
            .collect();
        for declaration in declarations {
            let name = declaration.ident.to_string();
            let is_test = cfg::is_test_only(&declaration.attrs);
            let explicit = path_attribute(&declaration.attrs);
            if let Some((_, items)) = declaration.content {
                let file = self.modules[module].file.clone();
                let id = self.add(Some(module), Some(&name), &file, is_test, items);
                let folder = format!("{children_folder}/{}", explicit.unwrap_or(name));
                self.descend(id, &folder, &folder, sources);
                continue;
            }
            let flat = format!("{children_folder}/{name}.rs");
            let (file, own_folder) = match explicit {
                Some(path) => {
                    let file = joined(path_folder, &path);
                    let folder = file.rsplit_once('/').unwrap().0.to_owned();
                    (file, folder)
                }
                None if sources.contains_key(&flat) => (flat, format!("{children_folder}/{name}")),
                None => (
                    format!("{children_folder}/{name}/mod.rs"),
                    format!("{children_folder}/{name}"),
                ),
            };
            // Helpers of unit tests that integration tests share lie outside, and draw no arrows.
            let is_in_test = is_test || self.modules[module].is_test;
            if is_in_test && !sources.contains_key(&file) && file.starts_with("tests/") {
                continue;
            }
            let items = parse(&file, sources);
            let id = self.add(Some(module), Some(&name), &file, is_test, items);
            let file_folder = file.rsplit_once('/').unwrap().0.to_owned();
            self.descend(id, &own_folder, &file_folder, sources);
        }
    }

    /// Returns the pairs of files in which the first declares the second as a submodule, directly or indirectly.
    pub(crate) fn parents_and_children(&self) -> HashSet<(&str, &str)> {
        let mut pairs = HashSet::new();
        for module in &self.modules {
            let mut above = module.parent;
            while let Some(id) = above {
                pairs.insert((self.modules[id].file.as_str(), module.file.as_str()));
                above = self.modules[id].parent;
            }
        }
        pairs
    }

    /// What a path in a module's code leads to: several things where a name means several. Empty for other crates.
    pub(crate) fn resolve(&self, module: usize, path: &[String]) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        self.follow(module, path, true, 0, &mut found);
        found
    }

    fn follow(
        &self,
        from: usize,
        path: &[String],
        is_start: bool,
        depth: usize,
        found: &mut BTreeSet<Target>,
    ) {
        let Some((head, rest)) = path.split_first() else {
            found.insert(Target::Module(from));
            return;
        };
        if depth > DEPTH_MAX {
            return;
        }
        let module = &self.modules[from];
        match head.as_str() {
            "crate" if is_start => self.follow(0, rest, false, depth + 1, found),
            "self" if is_start => self.follow(from, rest, true, depth + 1, found),
            "super" if is_start => {
                if let Some(parent) = module.parent {
                    self.follow(parent, rest, true, depth + 1, found);
                }
            }
            name => {
                let before = found.len();
                self.follow_name(from, name, rest, is_start, depth, found);
                if found.len() == before {
                    self.follow_globs(from, path, depth, found);
                }
            }
        }
    }

    fn follow_name(
        &self,
        from: usize,
        name: &str,
        rest: &[String],
        is_start: bool,
        depth: usize,
        found: &mut BTreeSet<Target>,
    ) {
        let module = &self.modules[from];
        for child in module.children.get(name).into_iter().flatten() {
            let before = found.len();
            self.follow(*child, rest, false, depth + 1, found);
            if found.len() == before {
                // Something that a macro defines there.
                found.insert(Target::DefinedIn(*child));
            }
        }
        if module.defined.contains(name) {
            found.insert(Target::DefinedIn(from));
        }
        let local = module.local_imports.iter().filter(|_| is_start);
        for import in module.imports.iter().chain(local) {
            if import.name.as_deref() == Some(name) {
                let longer: Vec<String> = import.path.iter().chain(rest).cloned().collect();
                self.follow(from, &longer, true, depth + 1, found);
            }
        }
    }

    fn follow_globs(
        &self,
        from: usize,
        path: &[String],
        depth: usize,
        found: &mut BTreeSet<Target>,
    ) {
        let module = &self.modules[from];
        for glob in module.imports.iter().filter(|import| import.is_glob) {
            let mut targets = BTreeSet::new();
            self.follow(from, &glob.path, true, depth + 1, &mut targets);
            for target in targets {
                if let Target::Module(target) = target
                    && target != from
                {
                    self.follow(target, path, false, depth + 1, found);
                }
            }
        }
    }

    /// The path from the crate's root, for a path that begins with `crate`, `self` or `super`. Re-exports are not followed.
    pub(crate) fn absolute(&self, module: usize, path: &[String]) -> Option<Vec<String>> {
        let mut at = module;
        let mut rest = path;
        let mut is_rooted = false;
        while let Some((head, tail)) = rest.split_first() {
            match head.as_str() {
                "crate" => at = 0,
                "self" => {}
                "super" => at = self.modules[at].parent?,
                _ => break,
            }
            is_rooted = true;
            rest = tail;
        }
        is_rooted.then(|| self.modules[at].path.iter().chain(rest).cloned().collect())
    }

    pub(crate) fn file_of(&self, target: Target) -> &str {
        let (Target::Module(module) | Target::DefinedIn(module)) = target;
        &self.modules[module].file
    }
}

fn parse(file: &str, sources: &Sources) -> Vec<Item> {
    let text = sources
        .get(file)
        .unwrap_or_else(|| panic!("{file} is declared as a module, but is not there"));
    syn::parse_file(text)
        .unwrap_or_else(|error| panic!("{file} cannot be parsed: {error}"))
        .items
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        match &pair.value {
            Expr::Lit(value) if pair.path.is_ident("path") => match &value.lit {
                Lit::Str(path) => Some(path.value()),
                _ => None,
            },
            _ => None,
        }
    })
}

/// `folder/path`, with `..` resolved.
fn joined(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn defined_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// The leaves of a `use` declaration; none for one that names another crate by `::`.
pub(crate) fn flattened(declaration: &ItemUse) -> Vec<Import> {
    let mut found = Vec::new();
    if declaration.leading_colon.is_none() {
        flatten(&declaration.tree, &mut Vec::new(), &mut found);
    }
    found
}

fn flatten(tree: &UseTree, path: &mut Vec<String>, found: &mut Vec<Import>) {
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            flatten(&part.tree, path, found);
            path.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, path, found);
            }
        }
        UseTree::Glob(_) => found.push(Import {
            path: path.clone(),
            name: None,
            is_glob: true,
        }),
        UseTree::Name(leaf) => {
            let name = leaf.ident.to_string();
            found.push(leaf_import(path, &name, None));
        }
        UseTree::Rename(leaf) => {
            let name = leaf.ident.to_string();
            found.push(leaf_import(path, &name, Some(leaf.rename.to_string())));
        }
    }
}

/// `a::{self}` imports `a`; other names are the last part of their path.
fn leaf_import(path: &[String], name: &str, rename: Option<String>) -> Import {
    let mut path = path.to_vec();
    if name != "self" || path.is_empty() {
        path.push(name.to_owned());
    }
    let name = rename.or_else(|| path.last().cloned());
    Import {
        path,
        name: name.filter(|name| name != "_"),
        is_glob: false,
    }
}

struct LocalImports(Vec<Import>);

impl<'ast> Visit<'ast> for LocalImports {
    fn visit_item_use(&mut self, declaration: &'ast ItemUse) {
        self.0.extend(flattened(declaration));
        visit::visit_item_use(self, declaration);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sources(files: &[(&str, &str)]) -> Sources {
        files
            .iter()
            .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))
            .collect()
    }

    fn files(tree: &Tree, module: &str, path: &str) -> Vec<String> {
        let module = tree
            .modules
            .iter()
            .position(|candidate| candidate.path.join("::") == module)
            .unwrap();
        let path: Vec<String> = path.split("::").map(str::to_owned).collect();
        tree.resolve(module, &path)
            .into_iter()
            .map(|target| tree.file_of(target).to_owned())
            .collect()
    }

    #[test]
    fn module_files_are_found_in_all_layouts() {
        let tree = Tree::new(
            "src/lib.rs",
            &sources(&[
                ("src/lib.rs", "mod a; mod b; mod inline { mod c; }"),
                ("src/a.rs", "mod d; #[path = \"elsewhere.rs\"] mod e;"),
                ("src/a/d.rs", ""),
                ("src/elsewhere.rs", ""),
                ("src/b/mod.rs", "mod f;"),
                ("src/b/f.rs", ""),
                ("src/inline/c.rs", ""),
            ]),
        );
        assert_eq!(tree.product_files().len(), 7);
        let pairs = tree.parents_and_children();
        assert!(pairs.contains(&("src/a.rs", "src/elsewhere.rs")));
        assert!(pairs.contains(&("src/lib.rs", "src/inline/c.rs")));
        assert!(!pairs.contains(&("src/a.rs", "src/b/f.rs")));
    }

    #[test]
    fn use_declaration_with_groups_yields_each_leaf() {
        let declaration: ItemUse =
            syn::parse_str("use a::{self, b, c::{d as e, f::*, g as _}};").unwrap();
        let leaves: Vec<(String, Option<String>)> = flattened(&declaration)
            .into_iter()
            .map(|import| (import.path.join("::"), import.name))
            .collect();
        let named = |path: &str, name: &str| (path.to_owned(), Some(name.to_owned()));
        assert_eq!(
            leaves,
            [
                named("a", "a"),
                named("a::b", "b"),
                named("a::c::d", "e"),
                ("a::c::f".to_owned(), None),
                ("a::c::g".to_owned(), None),
            ]
        );
    }

    #[test]
    fn path_through_reexports_leads_to_the_definition() {
        let tree = Tree::new(
            "src/lib.rs",
            &sources(&[
                ("src/lib.rs", "mod a; mod b; pub use a::Inner as Outer;"),
                ("src/a/mod.rs", "mod deep; pub use self::deep::*;"),
                ("src/a/deep.rs", "pub struct Inner;"),
                ("src/b.rs", "use super::a::{self as other};"),
            ]),
        );
        for path in [
            "crate::Outer",
            "super::Outer::new",
            "other::Inner",
            "crate::a::Inner",
            "super::b::other::deep::Inner",
        ] {
            assert_eq!(files(&tree, "b", path), ["src/a/deep.rs"], "{path}");
        }
        assert!(files(&tree, "b", "bytes::Bytes").is_empty());
    }

    #[test]
    fn import_named_like_its_crate_ends() {
        let tree = Tree::new(
            "src/lib.rs",
            &sources(&[("src/lib.rs", "use log::log; use x::y; use y::x;")]),
        );
        assert!(files(&tree, "", "log::info").is_empty());
        assert!(files(&tree, "", "x::z").is_empty());
    }
}

//! The references of each module's code: imports, paths in code, and paths inside macro calls.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{
    Attribute, Field, ImplItem, Item, ItemMod, ItemUse, Macro, Path, Stmt, TraitItem, Variant,
    VisRestricted,
};

use super::cfg;
use super::modules::{Tree, flattened};

/// A path as written in a module's code.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) module: usize,
    pub(crate) path: Vec<String>,
}

/// The references between files, with the paths that make them.
pub(crate) type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

/// Returns the references of all modules, with or without those of tests.
pub(crate) fn references(tree: &Tree, with_tests: bool) -> Vec<Reference> {
    let mut found = Vec::new();
    for (module, code) in tree.modules.iter().enumerate() {
        if code.is_test && !with_tests {
            continue;
        }
        let mut visitor = Visitor {
            with_tests,
            paths: Vec::new(),
        };
        for item in &code.items {
            // Modules are separate entries of the tree.
            if !matches!(item, Item::Mod(_)) {
                visitor.visit_item(item);
            }
        }
        found.extend(
            visitor
                .paths
                .into_iter()
                .map(|path| Reference { module, path }),
        );
    }
    found
}

/// Returns the arrows between the files of product builds. Follows re-exports to the defining file.
pub(crate) fn arrows(tree: &Tree) -> Arrows {
    let mut arrows = Arrows::new();
    for reference in references(tree, false) {
        let from = &tree.modules[reference.module].file;
        for target in tree.resolve(reference.module, &reference.path) {
            let to = tree.file_of(target);
            if to != from {
                arrows
                    .entry((from.clone(), to.to_owned()))
                    .or_default()
                    .insert(reference.path.join("::"));
            }
        }
    }
    arrows
}

/// Formats the paths of an arrow, without those that begin with a name that another path imports.
pub(crate) fn written(paths: &BTreeSet<String>) -> String {
    let is_import_of =
        |path: &str, name: &str| path.len() > name.len() && path.ends_with(&format!("::{name}"));
    let paths: Vec<&str> = paths
        .iter()
        .map(String::as_str)
        .filter(|path| {
            let head = path.split("::").next().unwrap_or_default();
            !paths.iter().any(|import| is_import_of(import, head))
        })
        .collect();
    paths.join(", ")
}

struct Visitor {
    with_tests: bool,
    paths: Vec<Vec<String>>,
}

impl Visitor {
    fn is_exempt(&self, attributes: &[Attribute]) -> bool {
        !self.with_tests && cfg::is_test_only(attributes)
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item(&mut self, item: &'ast Item) {
        if !self.is_exempt(cfg::of_item(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !self.is_exempt(cfg::of_impl_item(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        if !self.is_exempt(cfg::of_trait_item(item)) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast Field) {
        if !self.is_exempt(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast Variant) {
        if !self.is_exempt(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !self.is_exempt(cfg::of_statement(statement)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}

    fn visit_item_use(&mut self, declaration: &'ast ItemUse) {
        self.paths
            .extend(flattened(declaration).into_iter().map(|leaf| leaf.path));
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none() {
            self.paths.push(
                path.segments
                    .iter()
                    .map(|segment| segment.ident.to_string())
                    .collect(),
            );
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        paths_in_tokens(call.tokens.clone(), &mut self.paths);
    }

    // `pub(in path)`, doc comments and derives use no item.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// Collects `a::b::c` from the tokens of a macro call. A name after `.` or `::` begins no path.
fn paths_in_tokens(tokens: TokenStream, found: &mut Vec<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_punct = |at: usize, expected: char| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == expected);
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => paths_in_tokens(group.stream(), found),
            TokenTree::Ident(head) => {
                let follows = at > 0
                    && (is_punct(at - 1, '.') || is_punct(at - 1, ':') && is_path(&tokens, at));
                let mut path = vec![head.to_string()];
                while is_punct(at + 1, ':') && is_punct(at + 2, ':') {
                    let Some(TokenTree::Ident(next)) = tokens.get(at + 3) else {
                        break;
                    };
                    path.push(next.to_string());
                    at += 3;
                }
                if !follows {
                    found.push(path);
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        at += 1;
    }
}

/// Returns whether two colons precede the token at `at`. A single one follows the name of a field.
fn is_path(tokens: &[TokenTree], at: usize) -> bool {
    at >= 2 && matches!(&tokens[at - 2], TokenTree::Punct(punct) if punct.as_char() == ':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::tests::sources;

    /// Returns the arrows of a crate of three files with this `a.rs`.
    fn arrows_of_a(text: &str) -> Vec<(String, Vec<String>)> {
        let tree = Tree::new(
            "src/lib.rs",
            &sources(&[
                ("src/lib.rs", "mod a; mod b; mod c;"),
                ("src/a.rs", text),
                ("src/b.rs", "pub struct B; pub fn f() {}"),
                ("src/c.rs", "pub use super::b::*; pub const C: u8 = 1;"),
            ]),
        );
        arrows(&tree)
            .into_iter()
            .filter(|((from, _), _)| from == "src/a.rs")
            .map(|((_, to), paths)| (to, paths.into_iter().collect()))
            .collect()
    }

    #[test]
    fn code_of_each_kind_draws_its_arrow() {
        for text in [
            "use crate::b::B;",
            "use crate::{b::{self as x}};",
            "use super::b;",
            "fn g() { crate::b::f(); }",
            "fn g() { use super::b::f; f(); }",
            "fn g() { assert!(super::b::f() == ()); }",
            "fn g(_: Vec<crate::b::B>) {}",
            "impl crate::b::B {}",
            "type T = <crate::b::B as Iterator>::Item;",
            "macro_rules! m { () => { $crate::b::f() } }",
            "pub use crate::c::B;",
            "mod inline { use super::super::b::f; }",
            "#[cfg(not(test))] use crate::b::B;",
        ] {
            let found = arrows_of_a(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert_eq!(found[0].0, "src/b.rs", "{text}");
        }
    }

    #[test]
    fn name_from_a_glob_draws_its_arrow() {
        let found = arrows_of_a("use super::c::*; fn g() -> B { B }");
        let files: Vec<&str> = found.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(files, ["src/b.rs", "src/c.rs"]);
    }

    #[test]
    fn comments_strings_tests_and_crates_draw_no_arrow() {
        for text in [
            "// use crate::b::B;\n/// [`crate::b::B`]\nstruct S;",
            "const S: &str = \"crate::b::f()\";",
            "#[cfg(test)] use crate::b::B;",
            "#[cfg(test)] mod tests { use crate::b::B; }",
            "impl S { #[cfg(any(test, fuzzing))] fn g() { crate::b::f() } } struct S;",
            "fn g() { #[cfg(loom)] crate::b::f(); }",
            "use ::b::B; use std::b;",
            "fn g(x: S) { println!(\"{}\", x.b); } struct S;",
            "pub(in crate::b) struct S;",
        ] {
            assert!(arrows_of_a(text).is_empty(), "{text}");
        }
    }
}

//! Access to the state of a type: the location of its `impl` blocks, and the number of look-ups of connections by slot.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{
    Expr, ExprIndex, ExprMethodCall, ExprPath, Field, FnArg, ImplItem, Item, ItemImpl, ItemMod,
    Macro, Member, Pat, Stmt, Type,
};

use super::cfg;
use super::modules::Tree;

/// The former and current names of the slab of connections.
const SLAB_TYPES: [&str; 2] = ["Slots", "Slab"];

const LOOKUPS: [&str; 2] = ["get", "get_mut"];

/// Returns the files with `impl` blocks of each type, by the name of the type.
pub(crate) fn files_with_impl(tree: &Tree, type_name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for module in tree.modules.iter().filter(|module| !module.is_test) {
        let mut visitor = Impls {
            type_name,
            is_found: false,
        };
        visit_items(&mut visitor, &module.items);
        if visitor.is_found {
            found.insert(module.file.clone());
        }
    }
    found
}

/// Counts the look-ups of connections in the slab by product code, by file. Leaves out the file that defines the slab.
pub(crate) fn slab_lookups(tree: &Tree) -> BTreeMap<String, usize> {
    let product = || tree.modules.iter().filter(|module| !module.is_test);
    let mut names = Names(BTreeSet::new());
    for module in product() {
        visit_items(&mut names, &module.items);
    }
    let mut found = BTreeMap::new();
    for module in product() {
        let is_slab = module.items.iter().any(|item| {
            matches!(item, Item::Struct(item) if SLAB_TYPES.iter().any(|name| item.ident == name))
        });
        if is_slab {
            continue;
        }
        let mut lookups = Lookups {
            names: &names.0,
            count: 0,
        };
        visit_items(&mut lookups, &module.items);
        if lookups.count > 0 {
            *found.entry(module.file.clone()).or_default() += lookups.count;
        }
    }
    found
}

/// Visits all items except modules, which are separate entries of the tree.
fn visit_items<'ast>(visitor: &mut impl Visit<'ast>, items: &'ast [Item]) {
    for item in items {
        if !matches!(item, Item::Mod(_)) {
            visitor.visit_item(item);
        }
    }
}

fn is_named(path: &syn::Path, names: &[&str]) -> bool {
    path.segments
        .last()
        .is_some_and(|last| names.iter().any(|name| last.ident == name))
}

fn is_slab(mut kind: &Type) -> bool {
    while let Type::Reference(reference) = kind {
        kind = &reference.elem;
    }
    matches!(kind, Type::Path(kind) if is_named(&kind.path, &SLAB_TYPES))
}

struct Impls<'a> {
    type_name: &'a str,
    is_found: bool,
}

impl<'ast> Visit<'ast> for Impls<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !cfg::is_test_only(cfg::of_item(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_impl(&mut self, block: &'ast ItemImpl) {
        self.is_found |=
            matches!(&*block.self_ty, Type::Path(kind) if is_named(&kind.path, &[self.type_name]));
        visit::visit_item_impl(self, block);
    }

    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}
}

/// The names of fields, parameters and variables that are slabs.
struct Names(BTreeSet<String>);

impl Names {
    fn add(&mut self, pattern: &Pat) {
        if let Pat::Ident(name) = pattern {
            self.0.insert(name.ident.to_string());
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_field(&mut self, field: &'ast Field) {
        if let (true, Some(name)) = (is_slab(&field.ty), &field.ident) {
            self.0.insert(name.to_string());
        }
    }

    fn visit_fn_arg(&mut self, argument: &'ast FnArg) {
        if let FnArg::Typed(argument) = argument
            && is_slab(&argument.ty)
        {
            self.add(&argument.pat);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if let Pat::Type(typed) = &local.pat
            && is_slab(&typed.ty)
        {
            self.add(&typed.pat);
        }
        visit::visit_local(self, local);
    }
}

struct Lookups<'a> {
    names: &'a BTreeSet<String>,
    count: usize,
}

impl Lookups<'_> {
    fn is_slab(&self, expression: &Expr) -> bool {
        match expression {
            Expr::Field(field) => {
                matches!(&field.member, Member::Named(name) if self.names.contains(&name.to_string()))
            }
            Expr::Path(path) => path
                .path
                .get_ident()
                .is_some_and(|name| self.names.contains(&name.to_string())),
            Expr::Reference(reference) => self.is_slab(&reference.expr),
            Expr::Paren(inner) => self.is_slab(&inner.expr),
            _ => false,
        }
    }

    /// Finds calls of the form `name.get(` inside macros.
    fn count_in(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.count_in(group.stream()),
                TokenTree::Ident(name) if self.names.contains(&name.to_string()) => {
                    let is_call = matches!(tokens.get(at + 1), Some(TokenTree::Punct(dot)) if dot.as_char() == '.')
                        && matches!(tokens.get(at + 2), Some(TokenTree::Ident(method)) if LOOKUPS.iter().any(|name| method == name));
                    self.count += usize::from(is_call);
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Lookups<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !cfg::is_test_only(cfg::of_item(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !cfg::is_test_only(cfg::of_impl_item(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !cfg::is_test_only(cfg::of_statement(statement)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if LOOKUPS.iter().any(|name| call.method == name) && self.is_slab(&call.receiver) {
            self.count += 1;
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_index(&mut self, index: &'ast ExprIndex) {
        if self.is_slab(&index.expr) {
            self.count += 1;
        }
        visit::visit_expr_index(self, index);
    }

    /// Finds `Slab::get` as a path, whether called or passed as a function.
    fn visit_expr_path(&mut self, path: &'ast ExprPath) {
        let segments: Vec<String> = path
            .path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if let [.., kind, method] = segments.as_slice()
            && SLAB_TYPES.contains(&kind.as_str())
            && LOOKUPS.contains(&method.as_str())
        {
            self.count += 1;
        }
        visit::visit_expr_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.count_in(call.tokens.clone());
    }
}

/// Compares the `impl` blocks of a type outside its folder with the known ones. Returns one line for each difference.
pub(crate) fn misplaced(
    found: &BTreeSet<String>,
    type_name: &str,
    folder: &str,
    left: &[&str],
) -> Vec<String> {
    let inside = format!("{folder}/");
    let outside: BTreeSet<&str> = found
        .iter()
        .map(String::as_str)
        .filter(|file| !file.starts_with(&inside))
        .collect();
    let left: BTreeSet<&str> = left.iter().copied().collect();
    let new = outside
        .difference(&left)
        .map(|file| format!("{file} has an `impl {type_name}`, which belongs into {folder}/"));
    let mended = left.difference(&outside).map(|file| {
        format!("{file} has no `impl {type_name}` any more: remove it from the list of those left")
    });
    new.chain(mended).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::tests::sources;

    fn tree(room: &str) -> Tree {
        Tree::new(
            "src/lib.rs",
            &sources(&[
                ("src/lib.rs", "mod slab; mod reactor; mod room;"),
                (
                    "src/slab.rs",
                    "pub struct Slab<T>(Vec<T>); impl<T> Slab<T> { fn f(&self) { self.entries.get(0); } }",
                ),
                (
                    "src/reactor/mod.rs",
                    "pub struct Core<T> { conns: Slab<T> } impl<T: Send> Core<T> {}",
                ),
                ("src/room.rs", room),
            ]),
        )
    }

    #[test]
    fn impl_in_the_wrong_folder_is_reported() {
        for text in [
            "impl<T> crate::reactor::Core<T> {}",
            "impl<T> Drop for Core<T> { fn drop(&mut self) {} }",
            "mod inline { impl Core<u8> {} }",
            "fn f() { impl Core<u8> {} }",
        ] {
            let found = files_with_impl(&tree(text), "Core");
            assert_eq!(
                misplaced(&found, "Core", "src/reactor", &[]),
                ["src/room.rs has an `impl Core`, which belongs into src/reactor/"],
                "{text}"
            );
            assert!(misplaced(&found, "Core", "src/reactor", &["src/room.rs"]).is_empty());
        }
    }

    #[test]
    fn impl_that_has_moved_must_leave_the_list() {
        let found = files_with_impl(&tree("impl Other {} impl From<Core> for Other {}"), "Core");
        assert!(misplaced(&found, "Core", "src/reactor", &[]).is_empty());
        let wrong = misplaced(&found, "Core", "src/reactor", &["src/room.rs"]);
        assert!(wrong[0].contains("any more"), "{wrong:?}");
    }

    #[test]
    fn lookups_are_counted_in_each_form() {
        for (text, count) in [
            (
                "fn f(core: &Core<u8>) { core.conns.get(0); core\n.conns\n.get_mut(1); }",
                2,
            ),
            (
                "fn f(connections: &mut Slab<u8>) { connections.get_mut(0); }",
                1,
            ),
            (
                "fn f(core: &Core<u8>) { let conns = &core.conns; conns.get(0); }",
                1,
            ),
            (
                "fn f(core: &Core<u8>) { assert!(core.conns.get(0).is_some()); }",
                1,
            ),
            (
                "fn f(core: &Core<u8>) { core.conns[0]; Slab::get(&core.conns, 0); }",
                2,
            ),
            (
                "fn f(core: &Core<u8>) { core.conns.len(); core.others.get(0); }",
                0,
            ),
            (
                "#[cfg(test)] fn f(core: &Core<u8>) { core.conns.get(0); }",
                0,
            ),
        ] {
            let found = slab_lookups(&tree(text));
            assert_eq!(found.values().sum::<usize>(), count, "{text}: {found:?}");
        }
    }
}

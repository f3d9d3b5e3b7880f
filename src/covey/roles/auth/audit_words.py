"""What an operation says, as a sentence, and about whom. Pure: the view is an argument."""

from dataclasses import dataclass

from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    AccountRename,
    Admit,
    BudgetSpent,
    InvitationCreate,
    InvitationUse,
    KeyCreate,
    KeyRevoke,
    Label,
    Op,
    OwnerLimits,
    OwnerStanding,
    PasswordSet,
    Remove,
    Rename,
    SessionEnd,
    SessionStart,
)
from covey.contracts.limit_words import WORDS, told
from covey.roles.auth import people
from covey.store.key_check import restrictions
from covey.store.rows import AccountRow, InvitationRow, KeyRow, MemberRow, SessionRow
from covey.store.view import View


@dataclass(frozen=True, slots=True)
class Said:
    """`by`, `subject` and `subject_name` as in `covey.contracts.audit.AuditRecord`."""

    what: str
    by: str
    subject: str
    subject_name: str


def said(view: View, op: Op) -> Said:
    """What an operation says. The names are those of now."""
    match op:
        case Admit() | Remove() | Rename() | Label():
            return _of_members(view, op)
        case KeyCreate() | KeyRevoke():
            return _of_keys(view, op)
        case InvitationCreate() | InvitationUse():
            return _of_invitations(view, op)
        case SessionStart() | SessionEnd():
            return _of_sessions(view, op)
        case BudgetSpent():
            whose = op.id.partition(":")[2]
            return Said(f"The use of a budget in {op.period} was written down.", "", whose, "")
        case _:
            return _of_people(view, op)


def by_name(view: View, by: str) -> str:
    """Who did it, as people know them."""
    if by == people.OPERATOR or ":" in by or not by:
        return by
    if (account := view.get(AccountRow, by)) is not None:
        return account.name or by
    return f"invitation {by}" if view.get(InvitationRow, by) is not None else by


def _of_members(view: View, op: Admit | Remove | Rename | Label) -> Said:
    row = view.get(MemberRow, op.peer)
    name = row.name if row is not None and row.name else op.peer
    match op:
        case Admit():
            what = f"The machine {op.name or op.peer} was admitted as {', '.join(op.roles)}."
        case Remove():
            what = f"The machine {name} was removed."
        case Rename():
            what = f"A machine was named {op.name}."
        case Label():
            what = f"The machine {name} {_labelled(op)}."
    return Said(what, op.by, op.peer, name)


def _of_keys(view: View, op: KeyCreate | KeyRevoke) -> Said:
    row = view.get(KeyRow, op.id)
    created = op if isinstance(op, KeyCreate) else row.created if row is not None else None
    if created is None:  # its creation is another author's, and has not arrived
        return Said(f"The key {op.id} was revoked.", op.by, op.id, "")
    name, owner = created.label or f"{created.prefix}…", account_name(view, created.owner)
    if isinstance(op, KeyRevoke):
        return Said(f"The key “{name}” of {owner} was revoked.", op.by, op.id, name)
    kind = "An administrator's key" if op.admin else "A key"
    held = [*told(op.limits), *restricted(op)]
    return Said(f"{kind} “{name}” was made for {owner}{': ' * bool(held)}{', '.join(held)}.", op.by, op.id, name)


def restricted(created: KeyCreate) -> list[str]:
    """What a key is held to, beyond limits: `["models a and b"]`."""
    node_labels, routes = restrictions(created)
    held = {"models": created.models, "machines labelled": node_labels, "routes": routes}
    return [f"{what} {' and '.join(values)}" for what, values in held.items() if values]


def _labelled(op: Label) -> str:
    """`was labelled gpu and is labelled old no more`."""
    given = [label for label, has in sorted(op.labels.items()) if has]
    taken = [label for label, has in sorted(op.labels.items()) if not has]
    said = [f"was labelled {', '.join(given)}"] if given else []
    return " and ".join([*said, f"is labelled {', '.join(taken)} no more"] if taken else said)


def _of_people(
    view: View, op: AccountCreate | AccountRename | AccountApprove | PasswordSet | OwnerStanding | OwnerLimits | Op
) -> Said:
    subject = op.owner if isinstance(op, OwnerStanding | OwnerLimits) else getattr(op, "id", "")
    name = account_name(view, subject)
    row = view.get(AccountRow, subject)
    match op:
        case AccountCreate(pending=True):
            what = f"{op.name} asked for an account."
        case AccountCreate():
            what = f"The account {op.name} was made, {'an administrator' if op.role == 'admin' else 'a user'}."
        case AccountRename():
            before = row.created.name if row is not None and row.created is not None else ""
            known = f"The account that began as {before}" if before and before != op.name else "An account"
            what = f"{known} was named {op.name}."
        case AccountApprove():
            what = f"{name} was approved."
        case PasswordSet(hash=""):
            what = f"The password of {name} was withdrawn: a node that was removed since had set it."
        case PasswordSet():
            what = f"The password of {name} was set."
        case OwnerStanding(active=True):
            what = f"{name} may log in, and their keys work."
        case OwnerStanding():
            what = f"{name} was disabled."
        case OwnerLimits():
            what = f"The limits of {name}, over all keys, were set: {', '.join(_limits(op))}."
        case _:
            raise AssertionError(op)
    return Said(what, op.by, subject, name)


def _limits(op: OwnerLimits) -> list[str]:
    order = list(WORDS)
    values = sorted(op.limits.items(), key=lambda one: order.index(one[0]))
    return [f"{'no limit of' if value is None else f'{value:,}'} {WORDS[name]}" for name, value in values]


def _of_invitations(view: View, op: InvitationCreate | InvitationUse) -> Said:
    row = view.get(InvitationRow, op.id)
    created = op if isinstance(op, InvitationCreate) else row.created if row is not None else None
    label = created.label if created is not None else ""
    name = f"“{label}”" if label else op.id
    if isinstance(op, InvitationCreate):
        kind = "an administrator" if op.role == "admin" else "a user"
        return Said(f"The invitation {name} was made, for {kind}.", op.by, op.id, label)
    what = f"The invitation {name} was used by {account_name(view, op.account)}."
    return Said(what, op.account, op.id, label)


def _of_sessions(view: View, op: SessionStart | SessionEnd) -> Said:
    if isinstance(op, SessionStart):
        name = account_name(view, op.account)
        return Said(f"{name} logged in.", op.account, op.account, name)
    row = view.get(SessionRow, op.digest.hex())
    if row is None or row.started is None:
        return Said("A session ended.", "", "", "")
    name = account_name(view, row.started.account)
    return Said(f"A session of {name} ended.", "", row.started.account, name)


def account_name(view: View, account: str) -> str:
    """How somebody is called; their id where nobody knows."""
    row = view.get(AccountRow, account) if account else None
    return row.name if row is not None and row.name else account or "somebody"

"""What the names of columns say about their content."""

import re

_ROW_KEYS = {"id", "ids", "key", "uuid", "guid", "pk", "identifier", "rownames", "rowid", "unnamed", "index", "idx"}
_ID_WORDS = _ROW_KEYS | {
    *("number", "no", "nr", "num", "code", "ref", "reference", "sku", "serial", "hash", "ticket", "invoice", "row"),
    *("transaction", "order", "flight", "tailnum", "session", "token", "email", "phone", "iban", "ssn", "barcode"),
}
_CODE_WORDS = {
    *("id", "code", "type", "kind", "zip", "zipcode", "postal", "postcode", "category", "cat", "cluster", "sector"),
    *("region", "zone", "store", "shop", "branch", "station", "channel", "status", "vendor", "supplier", "terminal"),
    *("flight", "route", "line", "gate", "group", "segment", "division", "department", "dept", "country", "state"),
    *("city", "district", "product", "sku", "user", "customer", "client", "account", "device", "sensor", "machine"),
    *("number", "no", "nr", "carrier", "airline", "merchant", "employee", "location", "port", "protocol"),
}
_QUANTITY_WORDS = {
    *("count", "of", "total", "amount", "sum", "qty", "quantity", "size", "avg", "mean", "rate", "n", "max", "min"),
    *("median", "std", "price", "cost", "value", "score", "age", "len", "length", "time", "year", "share", "ratio"),
}
_GROUP_WORDS = {"status", "type", "kind", "category", "state", "mode", "name", "description", "date", "day", "at"}
_STRONG_TIMES = {
    *("event", "timestamp", "datetime", "created", "occurred", "recorded", "measured", "observed", "logged", "moment"),
    *("received", "ts", "posted", "pickup"),
}
_TIMES = {"time", "date", "day", "at", "when", "hour", "dt", "start", "started", "begin", "order", "transaction", "utc"}
_OTHER_TIMES = {
    *("birth", "dob", "born", "birthday", "due", "expiry", "expires", "expiration", "end", "ended", "finish", "stop"),
    *("updated", "modified", "changed", "deleted", "closed", "resolved", "delivered", "arrival", "dropoff", "valid"),
    *("until", "last", "next", "planned", "expected", "hired", "joined", "signup", "member"),
}
_LABELS = {
    *("label", "labels", "anomaly", "anomalous", "outlier", "fraud", "fraudulent", "attack", "malicious", "defect"),
    *("defective", "fault", "faulty", "failure", "failed", "intrusion", "abnormal", "spam", "phishing", "hazardous"),
}
_WEAK_LABELS = {"target", "class", "y", "outcome", "churn", "default", "response"}


def words_of(name: str) -> list[str]:
    """Return the parts of a name in lower case.

    >>> words_of("TransactionID"), words_of("is_fraud"), words_of("Order No."), words_of("createdAt2")
    (['transaction', 'id'], ['is', 'fraud'], ['order', 'no'], ['created', 'at', '2'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+", name)]


def is_id_name(name: str) -> bool:
    """Return whether a name is that of a column that tells things apart.

    >>> [is_id_name(name) for name in ("PassengerId", "flight", "order_date", "number_of_items")]
    [True, True, False, False]
    """
    parts = set(words_of(name))
    return bool(parts & _ID_WORDS) and (bool(parts & _ROW_KEYS) or not parts & (_QUANTITY_WORDS | _GROUP_WORDS))


def names_row(name: str) -> bool:
    """Return whether a name is that of a key rather than that of a number or a code."""
    return bool(set(words_of(name)) & _ROW_KEYS)


def is_code_name(name: str) -> bool:
    """Return whether the numbers of a column with this name are names.

    >>> [is_code_name(name) for name in ("store_nr", "zip", "number_of_items", "price")]
    [True, True, False, False]
    """
    parts = set(words_of(name))
    return bool(parts & _CODE_WORDS) and not parts & _QUANTITY_WORDS


def time_score(name: str, *, has_clock: bool) -> float:
    """Return how well a name fits the time at which a row happened; negative for other times.

    >>> time_score("created_at", has_clock=True) > time_score("date", has_clock=False) > 0
    True
    >>> time_score("date_of_birth", has_clock=False) < 0
    True
    """
    parts = set(words_of(name))
    score = 2.0 * bool(parts & _STRONG_TIMES) + 1.0 * bool(parts & _TIMES) - 4.0 * bool(parts & _OTHER_TIMES)
    return score + 0.5 * has_clock


def is_time_name(name: str) -> bool:
    """Return whether a name is that of a time.

    >>> is_time_name("unix_ts"), is_time_name("price")
    (True, False)
    """
    parts = set(words_of(name))
    return bool(parts & (_STRONG_TIMES | _TIMES | _OTHER_TIMES | {"unix", "epoch", "unixtime"}))


def names_anomaly(name: str) -> bool:
    """Return whether a name says what an anomaly is, as `is_fraud` does and `label` does not."""
    return bool(set(words_of(name)) & _LABELS - {"label", "labels"})


def label_strength(name: str) -> int:
    """Return 2 for the name of a column that marks anomalies, 1 for that of a target, 0 for another name.

    >>> [label_strength(name) for name in ("is_fraud", "Class", "price")]
    [2, 1, 0]
    """
    parts = set(words_of(name))
    return 2 if parts & _LABELS else 1 if parts & _WEAK_LABELS else 0

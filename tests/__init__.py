import flows  # noqa: F401 - before torch and Prefect are imported: it makes that take less time

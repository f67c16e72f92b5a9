"Changes that cannot change any number, so that no test can notice them: each with the reason."

EQUIVALENT = {}

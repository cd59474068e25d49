from packhorse import Packhorse

app = Packhorse("memory://")


@app.schedule("@daily")  # error: type-var
def again() -> None: ...

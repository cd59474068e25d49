from packhorse import Packhorse

app = Packhorse("memory://")


@app.schedule("@daily", missed="some")  # error: arg-type
@app.task
def again() -> None: ...

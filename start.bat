@echo off
rem Sets up .venv on the first run, then starts Snug with the flags given: start.bat --load-in-4bit
cd /d "%~dp0"
if not exist .venv\Scripts\python.exe (
    echo Setting up .venv ^(once; it downloads a few gigabytes where PyTorch comes with CUDA^)
    py -3 -m venv .venv || python -m venv .venv || goto no_python
)
fc /b requirements.txt .venv\installed-requirements.txt >nul 2>nul || (
    .venv\Scripts\python -m pip install --quiet --disable-pip-version-check -r requirements.txt || goto no_install
    copy /y requirements.txt .venv\installed-requirements.txt >nul
)
.venv\Scripts\python server.py %*
exit /b %errorlevel%

:no_python
echo snug: Snug needs Python 3.11 or newer. Install it from python.org, then run start.bat again. 1>&2
exit /b 1

:no_install
echo snug: Installing failed; the lines above say why. 1>&2
exit /b 1

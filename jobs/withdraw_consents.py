"""spark-submit --properties-file FILE jobs/withdraw_consents.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import withdraw_consents

if __name__ == "__main__":
    sys.exit(main(withdraw_consents))
